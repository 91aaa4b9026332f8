"""The classes of NYUv2, and what the axes of its normals are taken to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from simo_merge.data.labels import NormalsLabels
from simo_merge.data.nyuv2 import conventions, tables
from simo_merge.data.reading import labels_from_array
from simo_merge.errors import SimoError
from tests.trees.nyuv2 import CLASSES


def test_the_known_labels_have_their_classes() -> None:
    for label, (of_40, of_13) in CLASSES.items():
        assert tables.table(894, 40)[label] == of_40
        assert tables.table(894, 13)[label] == of_13
        assert tables.table(40, 13)[of_40] == of_13


def test_the_tables_are_whole() -> None:
    assert [len(tables.table(894, classes)) for classes in (40, 13)] == [895, 895]
    assert set(tables.table(894, 40)) == set(range(41))
    assert set(tables.table(40, 13)) == set(range(14))
    assert np.array_equal(tables.table(13, 13), np.arange(14))
    assert np.array_equal(tables.table(40, 40), np.arange(41))
    # Sums over the published map: a number that was lost, changed or moved would show.
    found = tables.table(894, 40)
    assert (int(found.sum()), int(found @ np.arange(895))) == (34765, 15853453)


def test_classes_have_their_names_in_order() -> None:
    thirteen, forty = tables.segmentation(13), tables.segmentation(40)
    names = "bed books ceiling chair floor furniture objects picture sofa table tv wall window"
    assert " ".join(thirteen.classes) == names
    assert forty.classes[:4] == ("wall", "floor", "cabinet", "bed")
    assert forty.classes[-3:] == ("otherstructure", "otherfurniture", "otherprop")
    assert len(set(forty.classes)) == 40


def test_no_two_classes_have_one_colour() -> None:
    for classes in tables.CLASS_COUNTS:
        palette = tables.segmentation(classes).palette
        assert palette is not None
        assert len(set(palette)) == classes


def test_the_forty_are_drawn_in_the_colours_of_pascal_voc() -> None:
    for index, colour in enumerate(tables.segmentation(40).palette or (), start=1):
        bits = [[(index >> (3 * place + channel)) & 1 for place in range(3)] for channel in range(3)]
        assert colour == tuple(sum(bit << (7 - place) for place, bit in enumerate(channel)) for channel in bits)


def test_an_id_that_no_class_has_is_named_as_it_is_stored() -> None:
    ids = np.array([[-1, 0], [12, 13]])
    with pytest.raises(SimoError, match=r"a\.npy: class ids 13 occur, expected 0 to 12, or -1 for unlabelled"):
        tables.read_classes(Path("a.npy"), ids, (2, 2), 13, 13, first=0, void=-1)
    with pytest.raises(SimoError, match=r"a\.png: class ids -1 occur, expected 1 to 13, or 0"):
        tables.read_classes(Path("a.png"), ids, (2, 2), 13, 13)
    with pytest.raises(SimoError, match=r"the label is \(2, 2\) and its image \(2, 3\)"):
        tables.read_classes(Path("a.png"), ids, (2, 3), 13, 13)


@pytest.mark.parametrize(
    ("labels", "to_the_viewer", "floor", "to_the_right"),
    [
        (conventions.EIGEN, (0, -1, 0), (0, 0, 1), (1, 0, 0)),
        (conventions.LADICKY, (-1, 0, 0), (0, -1, 0), (0, 0, 1)),
        (conventions.NYUD_MT, (0, 0, 1), (0, 1, 0), (1, 0, 0)),
    ],
    ids=["Eigen", "Ladicky", "NYUD-MT"],
)
def test_walls_and_floors_point_where_they_do_in_a_room(
    labels: NormalsLabels,
    to_the_viewer: tuple[int, ...],
    floor: tuple[int, ...],
    to_the_right: tuple[int, ...],
) -> None:
    stored = np.array([[to_the_viewer, floor, to_the_right, (0, 0, 0)]], dtype=np.float32)
    target, mask = labels_from_array(Path("normal.npy"), labels, stored, (1, 4))
    assert mask.tolist() == [[True, True, True, False]]
    assert torch.equal(target[:, 0, :3].T, torch.tensor([[0.0, 0, 1], [0, -1, 0], [1, 0, 0]]))


def test_a_picture_of_normals_has_none_where_it_is_grey_or_black() -> None:
    stored = np.array([[(127, 127, 127), (128, 128, 128), (127, 128, 127), (0, 0, 0), (128, 0, 128)]], dtype=np.uint8)
    for labels in (conventions.EIGEN, conventions.LADICKY, conventions.NYUD_MT):
        _, mask = labels_from_array(Path("normal.png"), labels, stored, (1, 5))
        assert mask.tolist() == [[False, False, False, False, True]]
