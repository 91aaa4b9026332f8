"""One world in every layout: found, paired by key, and masked alike."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from simo_merge.data import Sample
from simo_merge.data.taskonomy import TASKONOMY_LAYOUTS, taskonomy
from simo_merge.errors import SimoError
from tests.trees import taskonomy as tree

ALL = tuple(tree.TASKS)


def same(first: Sample, second: Sample) -> bool:
    return (
        first.key == second.key
        and torch.equal(first.image, second.image)
        and all(torch.equal(first.targets[task], second.targets[task]) for task in first.targets)
        and all(torch.equal(first.masks[task], second.masks[task]) for task in first.masks)
    )


@pytest.mark.parametrize("layout", ["downloader", "tars", "buildings"])
def test_layouts_hold_the_same_samples(tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    tree.write_official(tmp_path / "a")
    tree.WRITERS[layout](tmp_path / "b")
    with caplog.at_level(logging.INFO):
        one, other = taskonomy(tmp_path / "a"), taskonomy(tmp_path / "b")
    assert f"layout {layout} in" in caplog.text
    assert (one.source.layout, other.source.layout) == ("official", layout)
    assert one.keys == other.keys
    assert list(one.tasks) == list(other.tasks) == list(tree.TASKS)
    assert all(same(one[i], other[i]) for i in range(len(one)))


def test_one_building_alone_goes_by_the_name_of_its_folder(tmp_path: Path) -> None:
    world = tree.write_building(tmp_path / "ihlen")
    dataset = taskonomy(tmp_path / "ihlen", "tiny/test")
    assert dataset.source.layout == "building"
    assert dataset.keys == tuple(f"ihlen/{view}" for view in tree.SORTED_VIEWS)
    expected = world["ihlen"]["point_10_view_0"]["depth_zbuffer"] / 512.0
    assert torch.equal(dataset[0].targets["depth"][0] * dataset[0].masks["depth"], _masked(expected))


def _masked(depth: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.where(depth < 127, depth, 0).astype(np.float32))


def test_every_layout_has_a_writer_here() -> None:
    assert [layout.layout for layout in TASKONOMY_LAYOUTS] == list(tree.WRITERS)


@pytest.mark.parametrize("layout", list(tree.WRITERS))
def test_no_layout_is_taken_for_another(tmp_path: Path, layout: str) -> None:
    tree.WRITERS[layout](tmp_path / "ihlen")
    assert [kind.layout for kind in TASKONOMY_LAYOUTS if kind.recognises(tmp_path / "ihlen")] == [layout]


def test_two_layouts_in_one_folder_are_an_error_that_names_both(tmp_path: Path) -> None:
    tree.write_official(tmp_path, domains=("rgb",))
    tree.write_downloader(tmp_path, domains=("rgb",))
    with pytest.raises(SimoError, match="layouts official and downloader; say which"):
        taskonomy(tmp_path)
    assert len(taskonomy(tmp_path, layout="downloader")) == 16


def test_a_folder_without_taskonomy_is_told_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "rgb" / "allensville").mkdir(parents=True)
    with pytest.raises(SimoError, match=r"none of the known layouts.*official: DOMAIN/BUILDING/point_P_view_V_domain"):
        taskonomy(tmp_path)


def test_every_modality_of_a_view_is_its_own(tmp_path: Path) -> None:
    world = tree.flat(tree.write_official(tmp_path))
    dataset = taskonomy(tmp_path, tasks=["depth", "keypoints2d"])
    for i, key in enumerate(dataset.keys):
        sample, view = dataset[i], world[key]
        assert np.array_equal(np.round(sample.image.permute(1, 2, 0).numpy() * 255), view["rgb"])
        assert np.array_equal(np.round(sample.targets["keypoints2d"][0].numpy() * 3129), view["keypoints2d"])
        mask = sample.masks["depth"].numpy()
        assert np.array_equal(sample.targets["depth"][0].numpy()[mask] * 512, view["depth_zbuffer"][mask])


def test_only_what_is_there_is_offered(tmp_path: Path) -> None:
    tree.write_downloader(tmp_path, domains=("rgb", "normal", "mask_valid", "edge_texture"))
    assert list(taskonomy(tmp_path).tasks) == ["normals", "edge_texture"]
    with pytest.raises(SimoError, match="taskonomy has no task depth; it has normals, edge_texture, "):
        taskonomy(tmp_path, tasks=["depth"])


def test_derived_tasks_are_computed_from_taskonomys_labels(tmp_path: Path) -> None:
    tree.write_official(tmp_path, domains=("rgb", "depth_zbuffer", "normal"))
    sample = taskonomy(tmp_path, tasks=["reconstruction", "occlusion_edges", "shading"])[0]
    assert torch.equal(sample.targets["reconstruction"], sample.image)
    assert list(sample.targets) == ["reconstruction", "occlusion_edges", "shading"]


def test_another_size_can_be_asked_for(tmp_path: Path) -> None:
    tree.write_official(tmp_path)
    sample = taskonomy(tmp_path, size=(8, 12))[0]
    assert sample.size == (8, 12)
    assert all(mask.shape == (8, 12) for mask in sample.masks.values())


def test_mask_valid_holds_for_what_is_geometric_only(tmp_path: Path) -> None:
    tree.write_official(tmp_path)
    dataset = taskonomy(tmp_path)
    key = "stockman/point_2_view_1"
    hidden = np.full(tree.SIZE, 255, np.uint8)
    hidden[5:9] = 0
    tree.write_file(tmp_path / "mask_valid" / "stockman" / "point_2_view_1_domain_depth_zbuffer.png", hidden)
    sample = dataset[dataset.keys.index(key)]
    masked = {task for task, mask in sample.masks.items() if not mask[5:9].any()}
    flat = {"segmentation", "edge_texture", "keypoints2d"}
    assert masked == set(ALL) - flat


def test_mask_valid_may_go_by_its_own_name(tmp_path: Path) -> None:
    world = tree.write_official(tmp_path / "a", tree.make_world(["ihlen"]))
    tree.write_official(tmp_path / "b", world)
    for path in list((tmp_path / "b" / "mask_valid").rglob("*.png")):
        path.rename(path.with_name(path.name.replace("domain_depth_zbuffer", "domain_mask_valid")))
    one, other = taskonomy(tmp_path / "a"), taskonomy(tmp_path / "b")
    assert all(same(one[i], other[i]) for i in range(len(one)))


def test_depth_stands_in_for_a_missing_mask_valid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree.write_official(tmp_path / "a")
    tree.write_official(tmp_path / "b", domains=[d for d in tree.DOMAINS if d != "mask_valid"])
    with caplog.at_level(logging.INFO):
        one, other = taskonomy(tmp_path / "a"), taskonomy(tmp_path / "b")
    assert "of 4 buildings: 4 by mask_valid" in caplog.text
    assert "of 4 buildings: 4 by depth_zbuffer" in caplog.text
    assert all(same(one[i], other[i]) for i in range(len(one)))


def test_without_mask_and_depth_it_is_told_what_stays_unmasked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree.write_official(tmp_path, domains=("rgb", "normal", "reshading", "keypoints2d"))
    dataset = taskonomy(tmp_path)
    assert "4 of 4 buildings have neither mask_valid nor depth_zbuffer, so every pixel of reshading" in caplog.text
    masks = dataset[0].masks
    assert masks["reshading"].all()
    assert not masks["normals"].all()


def test_sources_travel_to_workers_without_their_listings(tmp_path: Path) -> None:
    tree.write_official(tmp_path)
    dataset = taskonomy(tmp_path)
    copy = pickle.loads(pickle.dumps(dataset))
    assert same(dataset[3], copy[3])
    assert not copy.source._listings
