"""prepare.py of NYUv2: nothing is lost but resolution, an interruption costs nothing, damage is noticed."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from simo_merge.data import FolderDataset, Sample, SourceDataset
from simo_merge.data.description import read_description
from simo_merge.data.nyuv2 import nyuv2
from simo_merge.errors import SimoError
from tests.trees import nyuv2 as trees
from tests.trees.nyuv2 import World

h5py = pytest.importorskip("h5py")
pytest.importorskip("scipy")

FOLDER = Path(__file__).parents[2] / "datasets" / "nyuv2"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name.removeprefix('nyuv2_script_')}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


script = load("nyuv2_script_prepare")
plane_normals = sys.modules["plane_normals"]
forms = sys.modules["nyuv2_forms"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def world() -> World:
    return trees.make_world()


@pytest.fixture(scope="session")
def official(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.write_official(tmp_path_factory.mktemp("official"), world)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the script in this process; returns its status and what it wrote to both streams."""

    def runner(*arguments: object) -> tuple[int, str, str]:
        status = script.main([*map(str, arguments), "--workers", "1"])
        told = capsys.readouterr()
        return status, told.out, told.err

    return runner


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def agree(first: Sample, second: Sample, normal: float = 1e-6, colour: float = 1e-6) -> None:
    """Both are one image with the same labels and masks; components of normals may differ by so much."""
    assert (first.image - second.image).abs().max() <= colour
    for name in ("segmentation", "depth", "normals"):
        mask = first.masks[name]
        assert torch.equal(mask, second.masks[name])
        off = (first.targets[name] - second.targets[name]).abs()[..., mask]
        assert off.numel() == 0 or off.max() <= (normal if name == "normals" else 0)


# -- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, (8, 12)])
def test_the_folder_form_has_what_the_official_file_has(
    run: Run, official: Path, tmp_path: Path, size: tuple[int, int] | None
) -> None:
    options = ["--size", f"{size[0]}x{size[1]}"] if size else []
    status, out, err = run(official, "--out", tmp_path / "fast", *options)
    assert (status, err) == (0, "")
    assert "9 images (train 6, test 3); 36 files written, 40 verified" in out
    for split in ("train", "test"):
        expected, found = nyuv2(official, split, size=size), FolderDataset(tmp_path / "fast", split)
        assert found.keys == expected.keys
        assert found.tasks == expected.tasks
        for first, second in zip(expected, found, strict=True):
            agree(first, second, normal=5e-4, colour=0.5 / 255 + 1e-6)


def test_whole_images_are_written_without_loss(run: Run, official: Path, tmp_path: Path, world: World) -> None:
    run(official, "--out", tmp_path / "fast")
    dataset = FolderDataset(tmp_path / "fast")
    for key, sample in zip(dataset.keys, dataset, strict=True):
        pixels = (sample.image * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(pixels, world.frames[int(key)].image)


@pytest.mark.parametrize("classes", [13, 40])
def test_the_folder_form_has_the_classes_that_were_asked_for(
    run: Run, official: Path, tmp_path: Path, classes: int
) -> None:
    assert run(official, "--out", tmp_path / "fast", "--classes", classes)[0] == 0
    expected, found = nyuv2(official, "train", ["segmentation"], classes=classes), FolderDataset(tmp_path / "fast")
    assert found.tasks["segmentation"] == expected.tasks["segmentation"]
    assert torch.equal(found[found.keys.index("0003")].targets["segmentation"], expected[0].targets["segmentation"])


def test_mtans_form_is_read_as_mtans_and_has_what_the_official_file_has(
    run: Run, official: Path, tmp_path: Path
) -> None:
    status, _, err = run(official, "--out", tmp_path / "arrays", "--form", "mtan", "--size", "16x24")
    assert (status, err) == (0, "")
    for split, part in (("train", "train"), ("test", "val")):
        expected, found = nyuv2(official, split), nyuv2(tmp_path / "arrays", split)
        assert found.source.layout == "mtan"
        assert found.keys == tuple(f"{part}/{index}" for index in range(len(expected)))
        for first, second in zip(expected, found, strict=True):
            agree(first, second, normal=1e-6)
    rows = (tmp_path / "arrays" / "frames.csv").read_text().splitlines()
    assert rows[:2] + rows[-1:] == ["part,number,frame", "train,0,0003", "val,2,0009"]


def test_the_papers_split_is_refused_on_numbers_that_are_not_mtans(run: Run, official: Path, tmp_path: Path) -> None:
    run(official, "--out", tmp_path / "arrays", "--form", "mtan", "--size", "16x24")
    with pytest.raises(SimoError, match="was prepared from another form of the set, whose order need not be MTAN's"):
        nyuv2(tmp_path / "arrays", "simo-2504.11268/val")
    assert nyuv2(tmp_path / "arrays", "test").source.splits() == ("train", "test")


def test_mtans_form_serves_the_loaders_of_that_form(run: Run, official: Path, tmp_path: Path) -> None:
    """They interpolate what they load, which whole numbers do not allow, and compare as these lines do."""
    run(official, "--out", tmp_path / "arrays", "--form", "mtan")
    for folder, channels in (("image", 3), ("label", None), ("depth", 1), ("normal", 3)):
        values = np.load(tmp_path / "arrays" / "train" / folder / "0.npy")
        assert values.shape == ((288, 384) if channels is None else (288, 384, channels))
        assert values.dtype == np.float32
        planes = torch.from_numpy(values if channels is None else np.moveaxis(values, -1, 0))
        assert F.interpolate(planes.reshape(1, -1, 288, 384), size=(9, 12), mode="nearest").shape[-2:] == (9, 12)
    label = np.load(tmp_path / "arrays" / "train" / "label" / "0.npy")
    assert set(np.unique(label)) <= {-1.0, *map(float, range(13))}
    normal = np.load(tmp_path / "arrays" / "train" / "normal" / "0.npy")
    assert set(np.round(np.linalg.norm(normal, axis=-1), 4).ravel()) == {0.0, 1.0}


def test_parquet_becomes_files_with_mtans_own_numbers(run: Run, world: World, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    trees.write_parquet(tmp_path / "hub", world)
    trees.write_mtan(tmp_path / "mtan", world)
    paper = "simo-2504.11268/val"
    assert run(tmp_path / "hub", "--out", tmp_path / "arrays", "--form", "mtan", "--size", "16x24")[0] == 0
    assert run(tmp_path / "hub", "--out", tmp_path / "fast")[0] == 0
    assert not (tmp_path / "arrays" / "frames.csv").exists()
    expected = nyuv2(tmp_path / "mtan", paper)
    arrays, fast = nyuv2(tmp_path / "arrays", paper), FolderDataset(tmp_path / "fast", paper.replace("/", "-"))
    assert expected.keys == arrays.keys == fast.keys
    for first, second, third in zip(expected, arrays, fast, strict=True):
        agree(first, second)
        agree(first, third, normal=5e-4)


@pytest.mark.parametrize("write", [trees.write_extracted, trees.write_nyud_mt, trees.write_multimae])
def test_every_other_form_can_be_made_quick_too(
    run: Run, world: World, tmp_path: Path, write: Callable[[Path, World], Path]
) -> None:
    root = write(tmp_path / "tree", world)
    assert run(root, "--out", tmp_path / "fast")[0] == 0
    expected, found = nyuv2(root, "test"), FolderDataset(tmp_path / "fast", "test")
    assert found.tasks == expected.tasks
    for first, second in zip(expected, found, strict=True):
        agree(first, second, normal=5e-4)
        assert ("edges" in first.targets) == (write is trees.write_nyud_mt)
        assert all(torch.equal(first.targets[n], second.targets[n]) for n in first.targets if n == "edges")


def test_a_copy_of_one_part_is_prepared_alone(run: Run, world: World, tmp_path: Path) -> None:
    root = trees.write_mtan(tmp_path / "tree", world)
    (root / "train").rename(tmp_path / "train")
    status, out, _ = run(root, "--out", tmp_path / "fast")
    assert status == 0
    assert "3 images (test 3" in out
    assert FolderDataset(tmp_path / "fast", "test").keys == ("val/0", "val/1", "val/2")


def test_the_archive_of_normals_can_lie_elsewhere(run: Run, official: Path, world: World, tmp_path: Path) -> None:
    bare = trees.write_official(tmp_path / "bare", world, archive=False)
    run(bare, "--normals", official.parent / "normals_gt", "--out", tmp_path / "fast")
    assert "Normals: the archive of Eigen and Fergus." in read_description(tmp_path / "fast").note
    for first, second in zip(nyuv2(official, "test"), FolderDataset(tmp_path / "fast", "test"), strict=True):
        agree(first, second, normal=5e-4)


# -- going on, and checking -------------------------------------------------------------------------------------------


def test_a_second_run_writes_nothing_and_a_lost_file_is_written_again(run: Run, official: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast"
    run(official, "--out", out)
    before = files(out)
    times = {path: path.stat().st_mtime_ns for path in (out / "depth").iterdir()}
    assert "0 files written, 40 verified" in run(official, "--out", out)[1]
    (out / "depth" / "0005.npy").unlink()
    (out / "depth" / ".0006.npy.77.part").write_bytes(b"half")
    assert "1 files written, 40 verified" in run(official, "--out", out)[1]
    assert files(out) == before
    assert [path.name for path, time in times.items() if path.stat().st_mtime_ns != time] == ["0005.npy"]


def test_a_file_that_was_damaged_since_is_named_and_written_again(
    run: Run, official: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "fast"
    run(official, "--out", out)
    before = files(out)
    damaged = bytearray(before["normals/0002.npy"])
    damaged[-1] ^= 1
    (out / "normals" / "0002.npy").write_bytes(damaged)
    status, told, _ = run(official, "--out", out)
    assert (status, "1 files written" in told) == (0, True)
    assert "normals/0002.npy is not what SHA256SUMS says; written again" in caplog.text
    assert files(out) == before


def test_the_checksums_are_those_that_the_usual_program_checks(run: Run, official: Path, tmp_path: Path) -> None:
    run(official, "--out", tmp_path / "fast")
    checked = subprocess.run(
        ["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=tmp_path / "fast", capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout) == (0, b"")
    listed = {line.split("  ")[1] for line in (tmp_path / "fast" / "SHA256SUMS").read_text().splitlines()}
    assert listed == set(files(tmp_path / "fast")) - {"SHA256SUMS"}


def test_an_interruption_keeps_what_was_written(
    run: Run, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "fast"
    whole = forms.Job.sample

    def interrupted(job: Any, key: str) -> Sample:
        if key == "0006":
            raise KeyboardInterrupt
        return whole(job, key)

    monkeypatch.setattr(forms.Job, "sample", interrupted)
    status, _, err = run(official, "--out", out)
    assert status == 2
    assert err == (
        "prepare.py: error: interrupted; the files written so far are kept, the same command goes on with the rest\n"
    )
    assert sorted(path.stem for path in (out / "images").iterdir()) == ["0003", "0004", "0005"]
    assert not (out / "SHA256SUMS").exists()
    monkeypatch.undo()
    assert "24 files written, 40 verified" in run(official, "--out", out)[1]


def test_a_damaged_source_is_named_and_what_is_sound_is_kept(run: Run, world: World, tmp_path: Path) -> None:
    root = trees.write_extracted(tmp_path / "tree", world)
    (root / "image" / "test" / "00009.png").write_bytes(b"")
    status, _, err = run(root, "--out", tmp_path / "fast")
    assert status == 2
    assert err.startswith(f"prepare.py: error: {root}/image/test/00009.png cannot be read as a picture")
    assert err.count("\n") == 1
    assert len(list((tmp_path / "fast" / "images").iterdir())) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "8x12"], "was written with size '', not '8x12'; take another folder"),
        (["--classes", "40"], "was written with classes 13, not 40"),
        (["--form", "mtan"], "was written with form 'folder', not 'mtan'"),
        (["--compute-normals"], "was written with normals 'the archive of Eigen and Fergus', not 'computed from depth"),
    ],
)
def test_a_folder_holds_files_of_one_kind(
    run: Run, official: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    run(official, "--out", tmp_path / "fast")
    status, _, err = run(official, "--out", tmp_path / "fast", *options)
    assert status == 2
    assert message in err


def test_the_official_file_is_one_source_however_it_is_named(run: Run, official: Path, tmp_path: Path) -> None:
    run(official, "--out", tmp_path / "fast")
    assert "0 files written" in run(official.parent, "--out", tmp_path / "fast")[1]


def test_a_folder_of_something_else_is_left_alone(run: Run, official: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    status, _, err = run(official, "--out", tmp_path)
    assert (status, "was not written by this program; take a new folder" in err) == (2, True)
    assert files(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.slow
def test_several_processes_write_what_one_writes(run: Run, official: Path, tmp_path: Path) -> None:
    run(official, "--out", tmp_path / "one")
    command = [sys.executable, FOLDER / "prepare.py", official, "--out", tmp_path / "two", "--workers", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert files(tmp_path / "one") == files(tmp_path / "two")


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "big"], "a size is HEIGHTxWIDTH, like"),
        (["--form", "mtan", "--classes", "40"], "--form mtan has 13 classes, and .* is read with 40"),
        (["--crop"], "--crop is for whole frames of 480x640; 0003 is 16x24"),
        (["--normals", "DIR"], "DIR has no folder normals; expected Eigen's archive"),
        (["--layout", "png"], "unknown layout 'png' of nyuv2"),
    ],
)
def test_a_wrong_option_is_told_in_a_line(
    run: Run, official: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    status, out, err = run(official, "--out", tmp_path / "fast", *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("prepare.py: error: ")
    assert re.search(message, err)


def test_what_needs_whole_frames_is_refused_for_others(run: Run, world: World, tmp_path: Path) -> None:
    root = trees.write_mtan(tmp_path / "tree", world)
    for option in ("--crop", "--compute-normals"):
        status, _, err = run(root, "--out", tmp_path / "fast", option)
        assert (status, f"{option} and data without normals need whole frames" in err) == (2, True)
    for folder in ("train", "val"):
        (root / folder / "normal").rename(root / folder / "unused")
    assert "data without normals need whole frames" in run(root, "--out", tmp_path / "fast")[2]
    assert not (tmp_path / "fast").exists()


def test_the_archive_is_an_option_of_the_official_file(run: Run, world: World, official: Path, tmp_path: Path) -> None:
    root = trees.write_extracted(tmp_path / "tree", world)
    archive = official.parent / "normals_gt"
    assert "--normals is for the official file" in run(root, "--out", tmp_path / "a", "--normals", archive)[2]
    both = run(official, "--out", tmp_path / "a", "--normals", archive, "--compute-normals")
    assert "exclude each other" in both[2]


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("nyu_depth_v2_labeled.mat", "--form", "SHA256SUMS", "normals_gt", "examples", "same command"):
        assert word in text


def test_a_crop_takes_what_the_sensor_saw() -> None:
    rows, columns = torch.meshgrid(torch.arange(480.0), torch.arange(640.0), indexing="ij")
    sample = Sample(rows.expand(3, -1, -1), {"segmentation": columns.long()}, {"segmentation": rows > 100}, "0001")
    cut = forms.cropped(sample)
    assert cut.size == (427, 561)
    assert (cut.image[0, 0, 0], cut.image[0, -1, 0]) == (44, 470)
    assert (cut.targets["segmentation"][0, 0], cut.targets["segmentation"][0, -1]) == (40, 600)
    assert cut.masks["segmentation"].sum() == (470 - 100) * 561


# -- normals from depth -----------------------------------------------------------------------------------------------


def plane(normal: tuple[float, float, float], size: tuple[int, int], distance: float = 2.0) -> np.ndarray:
    """Depth of the plane with this normal (x right, y down, z to the viewer), 0 where it is not seen within 10 m."""
    n = np.array(normal) / np.linalg.norm(normal)
    u, v = directions(size)
    along = -(n[0] * u[None, :] + n[1] * v[:, None] - n[2])  # of a ray (u, v, 1), against the normal
    depth = np.where(along > 0.01, distance / np.where(along > 0.01, along, 1.0), 0.0)
    return np.where(depth < 10, depth, 0.0)


def directions(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rays of the official toolbox's camera, (xx - cx) / fx for xx = 1 ... 640, at another size by their centres."""
    xx = (np.arange(size[1]) + 0.5) * 640 / size[1] + 0.5
    yy = (np.arange(size[0]) + 0.5) * 480 / size[0] + 0.5
    return (xx - 325.58244941119034) / 518.85790117450188, (yy - 253.73616633400465) / 519.46961112127485


def angle(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    cross = np.linalg.norm(np.cross(first, second), axis=-1)
    return np.degrees(np.arctan2(cross, (first * second).sum(axis=-1)))


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(0.7, 6))
def test_the_normal_of_a_plane_is_its_own(x: float, y: float, distance: float) -> None:
    depth = plane((x, y, 1.0), (60, 80), distance)
    normals, valid = plane_normals.plane_normals(depth, depth > 0)
    assert valid.mean() > 0.3
    expected = np.array([x, y, 1.0]) / np.linalg.norm([x, y, 1.0])
    assert angle(normals[valid], np.broadcast_to(expected, normals[valid].shape)).max() < 0.01
    assert np.allclose(np.linalg.norm(normals[valid], axis=-1), 1)


def test_floors_point_up_and_walls_to_the_viewer() -> None:
    floor = plane((0.0, -1.0, 0.2), (120, 160))
    normals, valid = plane_normals.plane_normals(floor, floor > 0)
    assert valid.any()
    assert (normals[valid][:, 1] < -0.9).all()
    wall, _ = plane_normals.plane_normals(np.full((40, 60), 3.0), np.ones((40, 60), bool))
    assert np.allclose(wall[20, 30], (0, 0, 1), atol=1e-6)


def test_two_surfaces_do_not_mix_at_a_jump_of_depth() -> None:
    near, far = plane((0.3, 0.0, 1.0), (60, 80), 1.5), plane((-0.3, 0.1, 1.0), (60, 80), 4.0)
    left = np.arange(80)[None, :] < 40
    normals, valid = plane_normals.plane_normals(np.where(left, near, far), np.ones((60, 80), bool))
    for here, normal in ((left, (0.3, 0.0, 1.0)), (~left, (-0.3, 0.1, 1.0))):
        chosen = valid & here
        assert chosen.mean() > 0.45
        expected = np.array(normal) / np.linalg.norm(normal)
        assert angle(normals[chosen], np.broadcast_to(expected, normals[chosen].shape)).max() < 0.01


def test_noise_in_disparity_is_averaged_and_what_was_not_measured_is_left_out() -> None:
    rng = np.random.default_rng(0)
    depth = plane((0.2, -0.3, 1.0), (120, 160), 3.0)
    noisy = 1 / (1 / depth + rng.normal(scale=0.002, size=depth.shape))
    known = rng.random(depth.shape) > 0.3
    noisy[~known] = 50.0
    normals, valid = plane_normals.plane_normals(noisy, known)
    assert not valid[~known].any()
    assert valid[known].mean() > 0.95
    expected = np.array([0.2, -0.3, 1.0]) / np.linalg.norm([0.2, -0.3, 1.0])
    assert np.median(angle(normals[valid], expected)) < 3


def test_the_fit_is_the_least_squares_fit_written_out() -> None:
    rng = np.random.default_rng(1)
    depth = plane((0.1, 0.2, 1.0), (40, 50)) * rng.uniform(0.98, 1.02, (40, 50))
    known = rng.random(depth.shape) > 0.1
    normals, valid = plane_normals.plane_normals(depth, known)
    u, v = directions((40, 50))
    for row, column in [(0, 0), (3, 45), (20, 25), (39, 49), (17, 2)]:
        rows, values = [], []
        for y in range(max(0, row - 5), min(40, row + 6)):
            for x in range(max(0, column - 5), min(50, column + 6)):
                q, centre = 1 / depth[y, x], 1 / depth[row, column]
                if known[y, x] and known[row, column] and abs(q - centre) < 0.05 * centre:
                    rows.append((u[x], v[y], 1.0))
                    values.append(q)
        assert valid[row, column] == (len(rows) >= 121 / 3)
        if valid[row, column]:
            a, b, c = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
            expected = np.array([-a, -b, c]) / np.linalg.norm([a, b, c])
            assert angle(normals[row, column], expected) < 0.05


def test_without_an_archive_normals_are_computed_and_the_method_is_told(run: Run, tmp_path: Path) -> None:
    truth = {1: (0.2, 0.1, 1.0), 3: (-0.3, 0.0, 1.0)}
    size = (48, 64)
    root = tmp_path / "official"
    root.mkdir()
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        depth = np.stack([plane(truth.get(frame, (0, 0, 1)), size).astype(np.float32).T for frame in range(1, 4)])
        file["images"] = np.zeros((3, 3, *size[::-1]), np.uint8)
        file["labels"] = np.zeros((3, *size[::-1]), np.uint16)
        file["depths"] = np.where(depth > 0, depth, 9.5)
        raw = depth.copy()
        raw[:, 30:40, 20:30] = 0
        file["rawDepths"] = raw
    status, _, err = run(root, "--out", tmp_path / "fast")
    assert (status, err) == (0, "")
    assert f"Normals: {plane_normals.METHOD}." in read_description(tmp_path / "fast").note
    assert "11 x 11" in plane_normals.METHOD
    assert json.loads((tmp_path / "fast" / "prepared.json").read_text())["normals"] == plane_normals.METHOD
    for frame, normal in truth.items():
        dataset: SourceDataset = FolderDataset(tmp_path / "fast", "train" if frame == 3 else "test", ["normals"])
        sample = dataset[dataset.keys.index(f"{frame:04d}")]
        mask = sample.masks["normals"].numpy()
        assert mask.mean() > 0.8
        assert not mask[20:30, 30:40].any()
        found = sample.targets["normals"].permute(1, 2, 0).numpy()[mask]
        assert angle(found, np.broadcast_to(np.array(normal), found.shape)).max() < 0.2
