"""The room renderer: exact labels, rooms that depend on their seed alone, folders that can be resumed."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

for needed in ("embreex", "trimesh", "scipy"):
    pytest.importorskip(needed, reason="the room renderer needs `pip install simo-merge[render]`")

ROOMS = Path(__file__).parents[2] / "datasets" / "rooms"
sys.path.insert(0, str(ROOMS))

from renderer import camera as cameras  # noqa: E402
from renderer.boxes import BoxCatalogue  # noqa: E402
from renderer.catalogue import (  # noqa: E402
    DEBIAN_FOLDER,
    Entry,
    RenderError,
    Sh3fCatalogue,
    cluster,
    read_properties,
    read_table,
)
from renderer.fixtures import build_shell  # noqa: E402
from renderer.furnishing import Furnisher  # noqa: E402
from renderer.geometry import CLASSES, Material, Scene, SceneBuilder, box, quad, to_linear, to_srgb  # noqa: E402
from renderer.imaging import encode_depth, encode_normals  # noqa: E402
from renderer.layout import FloorPlan  # noqa: E402
from renderer.lighting import Illumination, Lamp, Lights, smooth  # noqa: E402
from renderer.output import parse_splits  # noqa: E402
from renderer.recipes import KINDS  # noqa: E402
from renderer.room import render_room  # noqa: E402
from renderer.tracing import Tracer  # noqa: E402

SIZE = (56, 42)
ROOM = np.array([4.0, 6.0, 2.5])


def load_prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rooms_prepare", ROOMS / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_prepare()


@pytest.fixture
def bare() -> Scene:
    """An empty room of 4 x 6 x 2.5 m: six plain sides, nothing else."""
    white = Material.plain((0.8, 0.8, 0.8))
    x, y, z = np.diag(ROOM)
    scene = SceneBuilder()
    scene.add(quad((0, 0, 0), x, y, white), "floor")
    scene.add(quad(z, x, y, white), "ceiling")
    for corner, edge in (((0, 0, 0), x), (y, x), ((0, 0, 0), y), (x, y)):
        scene.add(quad(corner, edge, z, white), "wall")
    return scene.build()


def see(scene: Scene, camera: cameras.Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return cameras.labels(camera, scene, Tracer(scene))


def render(*arguments: object) -> int:
    return prepare.main([str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_level_camera_sees_the_wall_that_it_faces_at_one_z_depth(bare: Scene) -> None:
    camera = cameras.look(np.array([2.0, 1.0, 1.25]), np.pi / 2, 0.0, 0.0, 60.0, (84, 63))
    classes, depth, normals = see(bare, camera)
    facing = (classes == CLASSES.index("wall") + 1) & (normals[..., 2] > 0.99)
    assert facing.sum() > 500
    np.testing.assert_allclose(depth[facing], 5.0, atol=1e-9)  # 6 m less 1 m, also away from the axis


def test_normals_of_floor_ceiling_and_walls_follow_the_stated_axes(bare: Scene) -> None:
    camera = cameras.look(np.array([2.0, 1.0, 1.25]), np.pi / 2, 0.0, 0.0, 40.0, (84, 63))
    classes, _, normals = see(bare, camera)
    assert np.allclose(normals[classes == CLASSES.index("floor") + 1], (0, -1, 0))
    assert np.allclose(normals[classes == CLASSES.index("ceiling") + 1], (0, 1, 0))
    wall = classes == CLASSES.index("wall") + 1
    assert np.allclose(normals[31, 42], (0, 0, 1))
    assert wall[31, 0]
    assert np.allclose(normals[31, 0], (1, 0, 0))  # the left wall looks to the right
    assert np.allclose(normals[31, 83], (-1, 0, 0))


def test_depth_of_the_floor_is_right_under_pitch_and_roll(bare: Scene) -> None:
    camera = cameras.look(np.array([2.0, 1.0, 1.4]), 1.3, -25.0, 4.0, 60.0, (84, 63))
    classes, depth, _ = see(bare, camera)
    u, v = np.meshgrid(np.arange(84) + 0.5, np.arange(63) + 0.5)
    right, down, forward = camera.axes
    sinking = ((u - 42) * right[2] + (v - 31.5) * down[2]) / 60.0 + forward[2]
    floor = classes == CLASSES.index("floor") + 1
    assert floor.sum() > 500
    np.testing.assert_allclose(depth[floor], -1.4 / sinking[floor], rtol=1e-9)


def test_axes_of_the_camera_are_orthonormal_and_right_handed() -> None:
    axes = cameras.look(np.zeros(3), 0.7, -12.0, 5.0, 100.0, SIZE).axes
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.cross(axes[0], axes[1]), axes[2], atol=1e-12)
    assert axes[0][2] < 0  # clockwise: the right side dips


def test_normals_recomputed_from_depth_agree_on_planar_pixels() -> None:
    room = render_room(BoxCatalogue(), (84, 63), seed=3, index=1)
    z, f = room.depth, room.camera.focal
    u, v = np.meshgrid(np.arange(84) + 0.5, np.arange(63) + 0.5)
    points = z[..., None] * np.stack([(u - 42) / f, (v - 31.5) / f, np.ones_like(u)], axis=-1)
    along, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    normal = np.cross(along, down)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    normal *= -np.sign(np.einsum("ijc,ijc->ij", normal, points[1:-1, 1:-1]))[..., None]
    normal[..., 2] *= -1
    stored = 2 * encode_normals(room.normals).astype(float) / 255 - 1
    n = stored / np.linalg.norm(stored, axis=-1, keepdims=True)
    shifted = [n[1 + dy : 62 + dy, 1 + dx : 83 + dx] for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    inner = n[1:-1, 1:-1]
    curvature = z[1:-1, 2:] ** -1 + z[1:-1, :-2] ** -1 - 2 / z[1:-1, 1:-1]  # 1/z is linear on a plane
    curvature_y = z[2:, 1:-1] ** -1 + z[:-2, 1:-1] ** -1 - 2 / z[1:-1, 1:-1]
    planar = np.all([np.einsum("ijc,ijc->ij", inner, s) > 0.9999 for s in shifted], axis=0)
    planar &= (np.abs(curvature) < 1e-9) & (np.abs(curvature_y) < 1e-9)
    assert planar.mean() > 0.4
    degrees = np.degrees(np.arccos(np.clip(np.einsum("ijc,ijc->ij", normal, inner), -1, 1)))
    assert degrees[planar].max() < 0.6  # the rounding of uint8


def test_labels_come_from_the_ray_through_the_pixel_centre() -> None:
    camera = cameras.look(np.zeros(3), 0.0, 0.0, 0.0, 50.0, (4, 2))
    rays = camera.rays()[:, :, 0] @ camera.axes.T
    np.testing.assert_allclose(rays[0, 0], [-1.5 / 50, -0.5 / 50, 1])
    np.testing.assert_allclose(rays[1, 3], [1.5 / 50, 0.5 / 50, 1])


def test_encodings_hold_millimetres_and_half_steps() -> None:
    assert encode_depth(np.array([1.2344, 1.2346, 0.0, 99.0])).tolist() == [1234, 1235, 1, 65535]
    assert encode_normals(np.array([[0.0, -1.0, 1.0]])).tolist() in ([[128, 0, 255]], [[127, 0, 255]])
    values = np.linspace(0, 1, 50)
    np.testing.assert_allclose(to_srgb(to_linear(values)), values, atol=1e-12)


def test_direct_light_of_a_lamp_falls_with_the_square_of_its_distance(bare: Scene) -> None:
    lamp = Lamp(np.array([2.0, 3.0, 2.0]), np.array([3.0, 2.0, 1.0]))
    light = Illumination(bare, Tracer(bare), Lights(lamp), np.random.default_rng(0))
    here = np.tile([[2.0, 3.0, 0.0]], (500, 1))
    up = np.tile([[0.0, 0.0, 1.0]], (500, 1))
    mean = light.direct(here, up, 4).mean(axis=0)
    np.testing.assert_allclose(mean, lamp.power / 4 / np.pi, rtol=0.02)


def test_a_box_on_the_way_throws_a_shadow(bare: Scene) -> None:
    scene = SceneBuilder([bare.mesh], [bare.classes], [bare.items])
    scene.add(box((1.5, 2.5, 1.0), (2.5, 3.5, 1.1), Material.plain((0.5, 0.5, 0.5))), "table")
    lights = Lights(Lamp(np.array([2.0, 3.0, 2.0]), np.ones(3)))
    built = scene.build()
    light = Illumination(built, Tracer(built), lights, np.random.default_rng(0))
    points, up = np.array([[2.0, 3.0, 0.0], [0.1, 0.1, 0.0]]), np.array([[0.0, 0.0, 1.0]] * 2)
    dark, bright = light.direct(points, up, 8)[:, 0]
    assert dark == 0
    assert bright > 0


def test_the_filter_keeps_a_constant_and_does_not_mix_across_an_edge() -> None:
    rng = np.random.default_rng(0)
    points = np.stack([*np.meshgrid(np.arange(20.0), np.arange(16.0)), np.zeros((16, 20))], axis=-1) / 50
    normals = np.zeros((16, 20, 3))
    normals[:, :10, 2] = normals[:, 10:, 0] = 1.0
    light = np.where(np.arange(20) < 10, 1.0, 5.0)[None, :, None] * np.ones((16, 20, 3))
    np.testing.assert_allclose(smooth(light, points, normals, 4), light, rtol=1e-6)
    noisy = light + rng.normal(0, 0.2, light.shape)
    assert np.std(smooth(noisy, points, normals, 3)[:, :10]) < 0.5 * np.std(noisy[:, :10])


@pytest.mark.parametrize("kind", KINDS)
def test_footprints_stay_in_the_room_and_off_each_other(kind: str) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        scene, plan = SceneBuilder(), FloorPlan(rng.uniform((3.0, 3.0, 2.4), (6.0, 5.5, 3.0)))
        build_shell(scene, plan, kind, rng)
        furnisher = Furnisher(scene, plan, BoxCatalogue(), rng)
        furnisher.furnish(kind)
        spots = [item.place.rectangle for item in furnisher.items if item.z < 0.5]
        assert len(spots) >= 3
        for k, (x0, y0, x1, y1) in enumerate(spots):
            assert x0 > 0
            assert y0 > 0
            assert x1 < plan.size[0]
            assert y1 < plan.size[1]
            assert not any(x0 < c and a < x1 and y0 < d and b < y1 for a, b, c, d in spots[:k])


def test_vertex_clustering_moves_no_corner_further_than_a_cell() -> None:
    rng = np.random.default_rng(0)
    mesh = box((0, 0, 0), (0.5, 0.4, 0.3), Material.plain((1, 1, 1)))
    fine = mesh.triangles.repeat(20, axis=0) + rng.uniform(0, 0.004, (240, 3, 3))
    dense = type(mesh)(fine, mesh.uv.repeat(20, axis=0), mesh.material.repeat(20), mesh.materials)
    clustered = cluster(dense, 0.01)
    assert len(clustered.triangles) == len(dense.triangles)
    assert np.linalg.norm(clustered.triangles - fine, axis=-1).max() < 0.01 * np.sqrt(3)
    assert len(cluster(dense, 2.0).triangles) == 0


def test_properties_of_a_catalogue_are_grouped_by_number() -> None:
    text = "id=pack\nname#1=Bed\nwidth#1=170.5\n# comment\nname#12=Sofa = soft\n"
    assert read_properties(text) == {"1": {"name": "Bed", "width": "170.5"}, "12": {"name": "Sofa = soft"}}


def test_the_models_table_names_known_classes_only() -> None:
    assert len(read_table(ROOMS / "MODELS.csv")) == 228


def test_classes_are_those_of_the_embedded_rooms() -> None:
    yaml = pytest.importorskip("yaml")
    description = yaml.safe_load((ROOMS / "dataset.yaml").read_text())
    assert tuple(description["tasks"]["segmentation"]["classes"]) == CLASSES


def test_splits_are_shared_out_in_order() -> None:
    default = parse_splits(None, first=0, count=16)
    assert {name: len(keys) for name, keys in default.items()} == {
        "train": 10,
        "calibration": 2,
        "val": 1,
        "test": 3,
    }
    assert parse_splits("train=1, val=2", first=7, count=3) == {"train": ["00007"], "val": ["00008", "00009"]}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rooms") / "two-workers"
    splits = "train=2,val=1"
    assert render("--out", out, "--count", 3, "--size", "56x42", "--models", "boxes", "--splits", splits) == 0
    return out


def test_the_files_have_the_stated_encodings(rendered: Path) -> None:
    for key in ("00000", "00001", "00002"):
        modes = {"images": "RGB", "segmentation": "L", "depth": "I;16", "normals": "RGB"}
        for folder, mode in modes.items():
            with Image.open(next((rendered / folder).glob(f"{key}.*"))) as image:
                assert (image.mode, image.size) == (mode, SIZE)
        classes = np.asarray(Image.open(rendered / "segmentation" / f"{key}.png"))
        depth = np.asarray(Image.open(rendered / "depth" / f"{key}.png"))
        assert classes.min() >= 1
        assert classes.max() <= 13
        assert depth.min() > 300
        assert depth.max() < 12000
    assert (rendered / "gt_sets" / "train.txt").read_text() == "00000\n00001\n"
    with (rendered / "cameras.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["00000", "00001", "00002"]
    assert not list(rendered.rglob("*.part"))


def test_the_folder_is_a_data_set_that_simo_merge_reads(rendered: Path) -> None:
    folder = pytest.importorskip("simo_merge.data.folder")
    data = folder.FolderDataset(rendered, "train")
    assert len(data) == 2
    assert set(data[0].targets) == {"segmentation", "depth", "normals"}
    assert all(bool(mask.all()) for mask in data[0].masks.values())


def test_one_worker_draws_the_same_bytes_as_two(rendered: Path, tmp_path: Path) -> None:
    options = (
        "--count",
        3,
        "--size",
        "56x42",
        "--models",
        "boxes",
        "--splits",
        "train=2,val=1",
        "--workers",
        1,
    )
    assert render("--out", tmp_path / "one-worker", *options) == 0
    assert contents(tmp_path / "one-worker") == contents(rendered)


def test_a_deleted_and_a_truncated_file_are_drawn_again_and_nothing_else(
    rendered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(rendered)
    untouched = (rendered / "images" / "00000.jpg").stat().st_mtime_ns
    (rendered / "depth" / "00001.png").unlink()
    short = rendered / "images" / "00002.jpg"
    short.write_bytes(short.read_bytes()[:300])
    options = ("--count", 3, "--size", "56x42", "--models", "boxes", "--splits", "train=2,val=1")
    assert render("--out", rendered, *options) == 0
    assert "2 rooms rendered" in capsys.readouterr().out
    assert contents(rendered) == before
    assert (rendered / "images" / "00000.jpg").stat().st_mtime_ns == untouched


def test_another_seed_or_index_gives_another_room() -> None:
    rooms = [render_room(BoxCatalogue(), SIZE, seed, index) for seed, index in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert np.array_equal(rooms[0].depth, rooms[3].depth)
    assert np.array_equal(rooms[0].picture, rooms[3].picture)
    assert not np.array_equal(rooms[0].depth, rooms[1].depth)
    assert not np.array_equal(rooms[0].depth, rooms[2].depth)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--count", 1, "--size", "168"), "--size is '168'"),
        (("--count", 1, "--size", "10x126"), "each side must be"),
        (("--count", 0), "--count is 0"),
        (("--count", 1, "--seed", -1), "--seed is -1"),
        (("--count", 4, "--splits", "train=3"), "adds up to 3, --count is 4"),
        (("--count", 4, "--splits", "train=four"), "expected each name once"),
        (("--count", 1, "--models", "nowhere"), "Debian's package sweethome3d-furniture"),
    ],
)
def test_a_mistake_ends_in_one_line(
    options: tuple[object, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render("--out", tmp_path / "out", *options) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seed", 5, "--size", "56x42"), "seed 0, now seed is 5"),
        (("--size", "70x42"), "width 56, now width is 70"),
    ],
)
def test_a_folder_of_another_seed_or_size_is_refused(
    rendered: Path, options: tuple[object, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render("--out", rendered, "--count", 3, "--models", "boxes", *options) == 2
    assert said in capsys.readouterr().err


def test_a_folder_of_other_things_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("")
    assert render("--out", tmp_path, "--count", 1, "--models", "boxes") == 2
    assert "was not made by this script" in capsys.readouterr().err


def test_a_missing_package_is_told_with_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "NEEDED", ("no_such_ray_tracer",))
    assert render("--out", tmp_path / "out", "--count", 1) == 2
    assert "no_such_ray_tracer is not installed: pip install simo-merge[render]" in capsys.readouterr().err


def test_a_catalogue_without_furniture_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("renderer.room.MOST_SUBSEEDS", 2)

    class Empty:
        def draw(self, role: str, rng: np.random.Generator) -> None:
            return None

    with pytest.raises(RenderError, match="none of 2 sub-seeds"):
        render_room(Empty(), SIZE, 0, 0)


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's package sweethome3d-furniture is not installed")
def test_real_models_stand_at_their_catalogue_size_and_fill_a_room() -> None:
    entries = read_table(ROOMS / "MODELS.csv")
    catalogue = Sh3fCatalogue(DEBIAN_FOLDER, entries)
    bed = catalogue.load(next(entry for entry in entries if entry.key == "Scopia-3"))
    np.testing.assert_allclose(bed.size[:2], (1.705, 2.165), atol=1e-6)
    assert bed.mesh.bounds[0][2] == 0
    room = render_room(catalogue, (84, 63), seed=0, index=0)
    assert len(np.unique(room.classes)) >= 4
    with pytest.raises(RenderError, match=r"version 1\.8"):
        Sh3fCatalogue(DEBIAN_FOLDER, [Entry("Scopia-3", "/scopia/other.obj", "bed", "bed")])
