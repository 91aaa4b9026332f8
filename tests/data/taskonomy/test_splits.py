"""Splits are lists of buildings, with a limit in one of them; what a copy lacks is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from simo_merge.data.taskonomy import LIMITS, SPLITS, taskonomy
from simo_merge.data.taskonomy import splits as rules
from simo_merge.data.taskonomy.splits import buildings_of
from simo_merge.errors import SimoError
from tests.trees import taskonomy as tree

COUNTS = {"tiny": (25, 5, 5), "medium": (99, 20, 19), "full": (346, 67, 69), "fullplus": (383, 75, 79)}
"""Buildings in the published lists (not in the table beside them, which differs by one or two)."""


@pytest.mark.parametrize("subset", list(COUNTS))
def test_the_published_lists_are_whole_and_apart(subset: str) -> None:
    parts = [buildings_of(f"{subset}/{part}") for part in ("train", "val", "test")]
    assert tuple(len(part) for part in parts) == COUNTS[subset]
    assert len({name for part in parts for name in part}) == sum(COUNTS[subset])


def test_each_subset_lies_in_the_next_without_changing_sides() -> None:
    for smaller, larger in (("tiny", "medium"), ("medium", "full"), ("full", "fullplus")):
        for part in ("train", "val", "test"):
            assert set(buildings_of(f"{smaller}/{part}")) < set(buildings_of(f"{larger}/{part}"))


def test_the_papers_splits_have_8_4_and_4_buildings_of_tiny() -> None:
    parts = {part: set(buildings_of(f"simo-2504.11268/{part}")) for part in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [8, 4, 4]
    assert len(set().union(*parts.values())) == 16
    tiny = {part: set(buildings_of(f"tiny/{part}")) for part in ("train", "val", "test")}
    assert set().union(*parts.values()) < set().union(*tiny.values())
    assert parts["test"] - tiny["test"] == {"onaga", "tolstoy"}  # so it is not the published test split
    assert [LIMITS[f"simo-2504.11268/{part}"] for part in parts] == [2000, 1000, 1000]


def test_a_bare_part_is_refused_with_the_splits_that_it_could_be(tmp_path: Path) -> None:
    tree.write_official(tmp_path, domains=("rgb",))
    with pytest.raises(SimoError, match=r"no split 'train'; it has tiny/train, tiny/val.*simo-2504\.11268/test"):
        taskonomy(tmp_path, "train")


def test_a_split_takes_its_buildings_in_the_order_of_its_list(tmp_path: Path) -> None:
    tree.write_official(tmp_path, domains=("rgb",))
    dataset = taskonomy(tmp_path, "tiny/train")
    assert dataset.split == "tiny/train"
    assert dataset.published is None  # how many views a whole copy has is nowhere written
    assert dataset.keys == tuple(f"{b}/{v}" for b in ("allensville", "stockman") for v in tree.SORTED_VIEWS)
    assert taskonomy(tmp_path, "tiny/val").keys[0].startswith("wiconisco/")


def test_without_a_split_every_building_is_taken_sorted(tmp_path: Path) -> None:
    tree.write_official(tmp_path, domains=("rgb",))
    dataset = taskonomy(tmp_path)
    assert dataset.split == "all"
    assert [key.partition("/")[0] for key in dataset.keys[::4]] == sorted(tree.BUILDINGS)


def test_missing_buildings_are_told_with_both_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree.write_official(tmp_path, domains=("rgb",))
    taskonomy(tmp_path, "tiny/val")
    assert "taskonomy (tiny/val): 1 of the 5 buildings of this split are here" in caplog.text
    assert "without corozal, collierville, markleeville, darden;" in caplog.text


def test_a_whole_split_is_not_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree.write_official(tmp_path, tree.make_world(buildings_of("tiny/val"), ["point_0_view_0"]), ("rgb",))
    assert len(taskonomy(tmp_path, "tiny/val")) == 5
    assert not caplog.records


def test_a_split_of_which_no_building_is_there_is_an_error(tmp_path: Path) -> None:
    tree.write_official(tmp_path, tree.make_world(["ihlen"]), ("rgb",))
    with pytest.raises(SimoError, match=r"pictures of none of the 5 buildings of taskonomy \(tiny/val\)"):
        taskonomy(tmp_path, "tiny/val")


def test_the_splits_that_a_copy_has_part_of_are_named(tmp_path: Path) -> None:
    tree.write_official(tmp_path, tree.make_world(["darden"]), ("rgb",))
    assert taskonomy(tmp_path).source.splits() == ("tiny/val", "medium/val", "full/val", "fullplus/val")


def test_the_limit_takes_the_first_file_names_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write_official(tmp_path, domains=("rgb",))
    monkeypatch.setitem(rules.LIMITS, "simo-2504.11268/train", 3)
    kept = taskonomy(tmp_path, "simo-2504.11268/train").keys
    assert kept == tuple(f"{b}/{v}" for b in ("allensville", "stockman") for v in tree.SORTED_VIEWS[:3])
    files = sorted(path.name for path in (tmp_path / "rgb" / "stockman").iterdir())  # what the published code does
    assert [f"{view}_domain_rgb.png" for view in tree.SORTED_VIEWS] == files
    assert sorted(tree.VIEWS) != list(tree.SORTED_VIEWS)  # names alone would sort otherwise


def test_every_split_has_a_list_and_every_limit_a_split() -> None:
    assert all(buildings_of(name) for name in SPLITS)
    assert set(LIMITS) < set(SPLITS)


def test_views_that_lack_a_file_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree.write_official(tmp_path, tree.make_world(buildings_of("tiny/val")))
    (tmp_path / "normal" / "darden" / "point_10_view_0_domain_normal.png").unlink()
    dataset = taskonomy(tmp_path, "tiny/val", ["depth", "normals"])
    assert len(dataset) == 19
    assert "darden/point_10_view_0" not in dataset.keys
    assert "1 of 20 views have no file in normal and are left out; the first is darden/point_10_view_0" in caplog.text
    assert [dataset[i].key for i in range(19)] == list(dataset.keys)


def test_only_the_files_of_tasks_asked_for_matter(tmp_path: Path) -> None:
    tree.write_official(tmp_path, tree.make_world(["ihlen"]))
    (tmp_path / "normal" / "ihlen" / "point_10_view_0_domain_normal.png").unlink()
    assert len(taskonomy(tmp_path, tasks=["depth"])) == 4
    assert len(taskonomy(tmp_path, tasks=[])) == 4
    assert len(taskonomy(tmp_path, tasks=["shading"])) == 3  # computed from normals
    assert len(taskonomy(tmp_path)) == 3


def test_a_view_without_its_mask_is_left_out_where_its_building_has_masks(tmp_path: Path) -> None:
    tree.write_official(tmp_path, tree.make_world(["ihlen", "darden"]))
    (tmp_path / "mask_valid" / "ihlen" / "point_10_view_0_domain_depth_zbuffer.png").unlink()
    assert len(taskonomy(tmp_path, tasks=["reshading"])) == 7
    assert len(taskonomy(tmp_path, tasks=["edge_texture"])) == 8


def test_a_building_that_lacks_a_whole_domain_is_an_error(tmp_path: Path) -> None:
    tree.write_official(tmp_path, tree.make_world(["ihlen"]))
    tree.write_official(tmp_path, tree.make_world(["darden"]), ("rgb", "depth_zbuffer"))
    with pytest.raises(SimoError, match=r"normal/darden/\S+_normal\.png does not exist: 4 of 8 images.*'normals'"):
        taskonomy(tmp_path, tasks=["depth", "normals"])
    assert len(taskonomy(tmp_path, tasks=["depth"])) == 8
