"""What Taskonomy's files hold, read: units, masks and axes, against the numbers that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from simo_merge.data.taskonomy import CLASSES, DOMAINS, taskonomy
from simo_merge.errors import SimoError
from tests.trees import taskonomy as tree

KEY = "stockman/point_10_view_0"


def read(root: Path, task: str, key: str = KEY) -> tuple[np.ndarray, np.ndarray]:
    dataset = taskonomy(root, tasks=[task])
    sample = dataset[dataset.keys.index(key)]
    return sample.targets[task].numpy(), sample.masks[task].numpy()


@pytest.fixture
def view(tmp_path: Path) -> tree.View:
    return tree.flat(tree.write_official(tmp_path, tree.make_world(["stockman", "allensville"])))[KEY]


def test_depth_is_in_metres_and_65535_is_no_depth(tmp_path: Path, view: tree.View) -> None:
    for task, domain in (("depth", "depth_zbuffer"), ("depth_euclidean", "depth_euclidean")):
        depth, mask = read(tmp_path, task)
        stored = view[domain]
        assert (mask == (stored != 65535)).all()
        assert not mask[0, :3].any()
        np.testing.assert_allclose(depth[0][mask], stored[mask] / 512.0, rtol=1e-6)


def test_a_depth_file_that_lost_its_16_bits_says_so(tmp_path: Path, view: tree.View) -> None:
    tree.to_eight_bits(tmp_path / "depth_zbuffer" / "stockman" / "point_10_view_0_domain_depth_zbuffer.png")
    with pytest.raises(SimoError, match=r"stockman/point_10_view_0_domain_depth_zbuffer\.png.*8-bit.*expected 16-bit"):
        read(tmp_path, "depth")


@pytest.mark.parametrize("task", ["edge_texture", "edge_occlusion", "keypoints2d", "keypoints3d"])
def test_maps_of_16_bits_are_refused_with_8(tmp_path: Path, view: tree.View, task: str) -> None:
    tree.to_eight_bits(tmp_path / task / "stockman" / f"point_10_view_0_domain_{task}.png")
    with pytest.raises(SimoError, match="expected 16-bit"):
        read(tmp_path, task)


def test_classes_count_from_background_and_0_is_uncertain(tmp_path: Path, view: tree.View) -> None:
    classes, mask = read(tmp_path, "segmentation")
    stored = view["segment_semantic"]
    assert (mask == (stored != 0)).all()
    assert (classes[mask] == stored[mask].astype(int) - 1).all()
    assert [CLASSES[i] for i in classes[1, 1:3]] == ["background", "vase"]
    assert len(CLASSES) == 17


def test_a_class_that_no_view_shows_keeps_its_place(tmp_path: Path, view: tree.View) -> None:
    dataset = taskonomy(tmp_path, tasks=["segmentation"])
    seen = torch.cat(
        [s.targets["segmentation"][s.masks["segmentation"]] for s in map(dataset.__getitem__, range(len(dataset)))]
    )
    assert set(range(17)) - set(seen.tolist()) == {CLASSES.index("toaster")}


def test_an_id_beyond_the_classes_is_refused(tmp_path: Path, view: tree.View) -> None:
    path = tmp_path / "segment_semantic" / "stockman" / "point_10_view_0_domain_segmentsemantic.png"
    tree.write_file(path, np.full(tree.SIZE, 18, np.uint8))
    with pytest.raises(SimoError, match="class ids 18 occur, expected 1 to 17"):
        read(tmp_path, "segmentation")


def test_normals_are_unit_with_z_turned_towards_the_viewer(tmp_path: Path, view: tree.View) -> None:
    normals, mask = read(tmp_path, "normals")
    vectors = (2.0 * view["normal"] / 255 - 1) * (1, 1, -1)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    np.testing.assert_allclose(normals[:, mask].T, vectors[mask], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(normals[:, mask], axis=0), 1, atol=1e-6)
    assert (normals[2][1:] > 0).all()  # every surface of this view faces the viewer


def test_a_normal_counts_by_its_length_not_by_its_sum(tmp_path: Path, view: tree.View) -> None:
    normals, mask = read(tmp_path, "normals")
    assert abs(normals[:, 0, 3].sum()) < 0.01
    assert mask[0, 3:5].all()  # the one that sums to 0, and the one that is half a unit long
    np.testing.assert_allclose(normals[:, 0, 4], (0, 0, 1), atol=0.02)
    assert not mask[0, :3].any()


def test_grey_normals_are_invalid_without_any_other_file(tmp_path: Path) -> None:
    view = tree.flat(tree.write_official(tmp_path, domains=("rgb", "normal")))[KEY]
    _, mask = read(tmp_path, "normals")
    grey = (view["normal"] == 128).all(-1) | (view["normal"] == 127).all(-1)
    assert grey.sum() == 3
    assert (mask == ~grey).all()


@pytest.mark.parametrize(
    ("task", "full"),
    [("edge_texture", 11041), ("edge_occlusion", 4000), ("keypoints2d", 3129), ("keypoints3d", 64131)],
)
def test_maps_are_scaled_by_their_published_constants(tmp_path: Path, view: tree.View, task: str, full: int) -> None:
    values, mask = read(tmp_path, task)
    geometric = task in ("edge_occlusion", "keypoints3d")
    assert mask.sum() == mask.size - 3 * geometric
    np.testing.assert_allclose(values[0][mask], view[task][mask] / full, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_reshading_may_be_grey_or_three_equal_channels(tmp_path: Path, view: tree.View, channels: int) -> None:
    path = tmp_path / "reshading" / "stockman" / "point_10_view_0_domain_reshading.png"
    tree.write_file(path, view["reshading"][..., 0] if channels == 1 else view["reshading"])
    values, mask = read(tmp_path, "reshading")
    assert values.shape == (1, *tree.SIZE)
    np.testing.assert_allclose(values[0][mask], view["reshading"][..., 0][mask] / 255, rtol=1e-6)


def test_curvature_has_two_channels_and_is_half_where_it_is_flat(tmp_path: Path, view: tree.View) -> None:
    values, mask = read(tmp_path, "principal_curvature")
    assert values.shape == (2, *tree.SIZE)
    assert values[:, 0, 3].tolist() == [0.5, 0.5]
    np.testing.assert_allclose(values[:, mask].T, view["principal_curvature"][mask][:, :2] / 254, rtol=1e-6)
    assert not mask[0, :3].any()


def test_a_view_out_of_the_mesh_has_no_geometry_but_its_other_labels(tmp_path: Path, view: tree.View) -> None:
    for task, domain in DOMAINS.items():
        values, mask = read(tmp_path, task, tree.EMPTY)
        assert mask.any() != domain.geometric, task
        assert np.isfinite(values).all()


def test_a_damaged_file_is_named(tmp_path: Path, view: tree.View) -> None:
    for domain in ("rgb", "edge_texture", "mask_valid", "reshading"):
        path = tmp_path / domain / "stockman" / tree.file_name("point_10_view_0", domain)
        whole = path.read_bytes()
        tree.damage(path)
        task = domain if domain in DOMAINS else "normals"
        with pytest.raises(SimoError, match=rf"{domain}/stockman/{path.name} cannot be read as a picture"):
            read(tmp_path, task)
        path.write_bytes(whole)


def test_stored_numbers_can_be_had_without_their_meaning(tmp_path: Path, view: tree.View) -> None:
    source = taskonomy(tmp_path).source
    for task, domain in tree.TASKS.items():
        stored, expected = source.stored(task, KEY), view[domain]
        assert stored is not None
        assert stored.dtype == expected.dtype
        assert (stored == expected[..., : stored.shape[2]] if stored.ndim == 3 else stored == expected).all()
