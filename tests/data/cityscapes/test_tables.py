"""The class tables agree with the benchmark's, written down a second time here."""

from __future__ import annotations

import numpy as np
import pytest

from simo_merge.data.cityscapes import tables
from simo_merge.errors import SimoError
from tests.trees import cityscapes as tree

NAMES = (
    "road sidewalk building wall fence pole,traffic light,traffic sign,vegetation terrain sky person rider car truck "
    "bus train motorcycle bicycle"
)


def test_the_19_classes_have_their_names_and_order() -> None:
    words = [name for part in NAMES.split(",") for name in ([part] if part.startswith("traffic") else part.split())]
    assert [entry.name for entry in tables.classes(19)] == words


def test_the_7_categories_have_their_names_and_order() -> None:
    names = ["flat", "construction", "object", "nature", "sky", "human", "vehicle"]
    assert [entry.name for entry in tables.classes(7)] == names


@pytest.mark.parametrize("count", [19, 7])
def test_each_id_belongs_to_its_class_and_ignored_ones_to_none(count: int) -> None:
    ids = np.array([*range(34), 255])
    assert (tables.class_of_id(count)[ids] == tree.classes(ids, count)).all()
    assert (tables.class_of_id(count)[34:255] == tables.UNKNOWN).all()


def test_a_category_is_the_same_by_id_and_by_class() -> None:
    ids = np.array(tree.EVALUATED)
    by_class = tables.category_of_class()[tables.class_of_id(19)[ids]]
    assert (by_class == tables.class_of_id(7)[ids]).all()


def test_the_parts_are_background_four_of_humans_and_five_of_vehicles() -> None:
    words = [entry.name.split()[0] for entry in tables.parts()]
    assert words == ["background", *["human"] * 4, *["vehicle"] * 5]


def test_every_part_of_every_kind_is_counted_once() -> None:
    lookup = tables.part_of_sid_pid()
    expected = {sid * 100 + pid: pid for sid in (24, 25) for pid in range(1, 5)}
    expected |= {sid * 100 + pid: pid + 4 for sid in (26, 27, 28) for pid in range(1, 6)}
    assert len(expected) == 23
    assert {int(index): int(lookup[index]) for index in np.flatnonzero(lookup)} == expected


def test_colours_are_those_of_the_data_set() -> None:
    colours = {entry.name: entry.colour for entry in tables.classes(19)}
    assert (colours["road"], colours["sky"], colours["bicycle"]) == ((128, 64, 128), (70, 130, 180), (119, 11, 32))


def test_another_number_of_classes_is_an_error() -> None:
    with pytest.raises(SimoError, match=r"classes=19 or classes=7"):
        tables.classes(34)
