"""What every data set shares: splits that are partly there, other sizes, layouts that are told apart."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simo_merge.data import Layout, SourceDataset, Split, detect, open_dataset, parse_size, parse_spec, resize, rooms
from simo_merge.data.resize import nearest
from simo_merge.data.splits import present
from simo_merge.errors import SimoError
from simo_merge.tasks import Depth, Normals


class Walls(Layout):
    """A wall at 2 m in every image; it has 3 of the 5 images of its only split."""

    layout = "walls"
    expects = "WALL"
    name = "walls"
    tasks: ClassVar = {"depth": Depth(), "normals": Normals()}

    def __init__(self, root: Path = Path()) -> None:
        self.root = root

    @classmethod
    def recognises(cls, root: Path) -> bool:
        return (root / "WALL").is_file()

    def split(self, name: str | None) -> Split:
        return present("walls", name or "all", ["e", "d", "c", "b", "a"], ["a", "c", "e", "z"])

    def image(self, key: str) -> Tensor:
        return torch.full((3, 4, 6), 0.5)

    def label(self, task: str, key: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        everywhere = torch.ones(size, dtype=torch.bool)
        if task == "depth":
            return torch.full((1, *size), 2.0), everywhere
        return torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(3, *size), everywhere

    def missing(self, task: str, keys: Sequence[str]) -> list[str]:
        return ["normals/c.png"] if task == "normals" else []


class Doors(Walls):
    layout = "doors"
    expects = "DOOR"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        return (root / "DOOR").is_file()


def test_a_partial_copy_keeps_the_order_of_the_list_and_warns_with_both_numbers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = SourceDataset(Walls(), "train", ["depth"])
    assert dataset.keys == ("e", "c", "a")
    assert dataset.published == 5
    assert "3 of the 5 images" in caplog.text


def test_none_of_a_list_is_an_error() -> None:
    with pytest.raises(SimoError, match="no image of the 2 of walls"):
        present("walls", "train", ["x", "y"], ["a"])


def test_labels_that_are_missing_are_told_before_anything_is_read() -> None:
    with pytest.raises(SimoError, match=r"normals/c\.png does not exist: 1 of 3 images .*'normals'"):
        SourceDataset(Walls(), "train")


def test_derived_tasks_need_what_they_are_computed_from_and_not_that_it_is_asked_for() -> None:
    sample = SourceDataset(Walls(), "train", ["occlusion_edges"], size=(8, 12))[0]
    assert list(sample.targets) == ["occlusion_edges"]
    assert sample.targets["occlusion_edges"].shape == (1, 8, 12)
    assert float(sample.targets["occlusion_edges"].abs().max()) == 0


def test_a_data_set_tells_which_of_a_models_tasks_it_offers() -> None:
    dataset = SourceDataset(Walls(), "train", [])
    assert dataset.offered(["keypoints", "segmentation", "depth", "occlusion_edges"]) == [
        "keypoints",
        "depth",
        "occlusion_edges",
    ]


def test_no_tasks_are_images_alone() -> None:
    sample = SourceDataset(Walls(), "train", [])[0]
    assert sample.targets == {}


def test_a_data_set_of_another_size_keeps_values_and_moves_pixels() -> None:
    full = rooms("val")[3]
    small = open_dataset("rooms?size=63x84", "val")[3]
    assert small.size == (63, 84)
    # Every second pixel, as 2 i + 1 is the centre's: no label is a mixture of two.
    assert torch.equal(small.targets["depth"], full.targets["depth"][:, 1::2, 1::2])
    assert torch.equal(small.masks["segmentation"], full.masks["segmentation"][1::2, 1::2])
    assert torch.equal(small.targets["normals"], full.targets["normals"][:, 1::2, 1::2])
    halves = full.image.unflatten(1, (63, 2)).unflatten(3, (84, 2)).mean((2, 4))
    assert float((small.image - halves).abs().mean()) < 0.02


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_nearest_takes_the_pixel_under_the_centre(height: int, width: int, rows: int, columns: int) -> None:
    values = torch.arange(height * width).view(height, width)
    found = nearest(values, (rows, columns))
    y = [int((i + 0.5) * height / rows + 1e-9) for i in range(rows)]
    x = [int((i + 0.5) * width / columns + 1e-9) for i in range(columns)]
    assert np.array_equal(found.numpy(), values.numpy()[np.ix_(y, x)])


def test_resizing_to_its_own_size_changes_nothing() -> None:
    sample = rooms("val")[0]
    same = resize(sample, sample.size)
    assert torch.allclose(same.image, sample.image, atol=1e-6)
    assert torch.equal(same.targets["normals"], sample.targets["normals"])


def test_the_layout_is_detected_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "DOOR").touch()
    with caplog.at_level(logging.INFO):
        assert detect("walls", tmp_path, [Walls, Doors]) is Doors
    assert "layout doors" in caplog.text


def test_an_ambiguous_layout_names_the_candidates_and_one_can_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "DOOR").touch()
    (tmp_path / "WALL").touch()
    with pytest.raises(SimoError, match=r"walls and doors.*\?layout=walls"):
        detect("walls", tmp_path, [Walls, Doors])
    assert detect("walls", tmp_path, [Walls, Doors], "doors") is Doors


def test_no_layout_says_what_each_expects(tmp_path: Path) -> None:
    with pytest.raises(SimoError, match="walls: WALL; doors: DOOR"):
        detect("walls", tmp_path, [Walls, Doors])
    with pytest.raises(SimoError, match="unknown layout 'roofs' of walls; known: walls, doors"):
        detect("walls", tmp_path, [Walls, Doors], "roofs")
    with pytest.raises(SimoError, match="does not exist"):
        detect("walls", tmp_path / "nowhere", [Walls, Doors])


def test_a_spec_has_a_prefix_a_place_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_spec("nyuv2:/data/nyu?layout=mtan&size=126x168")
    assert (spec.prefix, spec.place, spec.options) == ("nyuv2", "/data/nyu", {"layout": "mtan", "size": "126x168"})
    monkeypatch.chdir(tmp_path)
    Path("rooms").mkdir()
    assert parse_spec("rooms").prefix == "rooms"
    strange = tmp_path / "what?a:name"
    strange.mkdir()
    assert parse_spec(str(strange)).place == str(strange)
    assert parse_spec(f"{tmp_path}?size=1x2") == parse_spec(f"folder:{tmp_path}?size=1x2")
    assert parse_size("126x168") == (126, 168)


@pytest.mark.parametrize("spec", ["rooms?size", "rooms?size=", "rooms?size=1x1&size=2x2", "rooms?colour=red"])
def test_a_wrong_option_is_an_error(spec: str) -> None:
    with pytest.raises(SimoError, match=r"expected each option once|unknown option colour; rooms has size"):
        open_dataset(spec, "val")
