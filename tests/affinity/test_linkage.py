"""The tree of tasks against scipy's, and in what order it is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from simo_merge.affinity import AffinityMatrix
from simo_merge.affinity.linkage import Branch, average_linkage
from simo_merge.errors import SimoError


def affinities(values: torch.Tensor, symmetric: bool = False) -> AffinityMatrix:
    return AffinityMatrix("made-up", tuple("abcdefgh"[: len(values)]), values.double(), symmetric, "weights")


def joints(branch: Branch) -> list[tuple[frozenset[int], float]]:
    if branch.parts is None:
        return []
    return [(frozenset(branch.leaves), branch.level), *joints(branch.parts[0]), *joints(branch.parts[1])]


@pytest.mark.parametrize("seed", range(4))
def test_the_tree_is_that_of_average_linkage_on_distances(seed: int) -> None:
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    squareform = pytest.importorskip("scipy.spatial.distance").squareform
    torch.manual_seed(seed)
    matrix = affinities(torch.rand(7, 7))
    distance = 2.0 - matrix.mutual().numpy()
    np.fill_diagonal(distance, 0.0)
    sets: list[frozenset[int]] = [frozenset([i]) for i in range(7)]
    expected = {}
    for left, right, height, _ in hierarchy.linkage(squareform(distance, checks=False), "average"):
        sets.append(sets[int(left)] | sets[int(right)])
        expected[sets[-1]] = 2.0 - height
    found = dict(joints(average_linkage(matrix)))
    assert found.keys() == expected.keys()
    assert [found[key] for key in expected] == pytest.approx(list(expected.values()))


def test_joined_tasks_stand_side_by_side_and_levels_never_rise() -> None:
    family = torch.tensor([0, 1, 0, 1])
    values = torch.where(family[:, None] == family, 0.9, 0.1)
    values[0, 2] = values[2, 0] = 0.8
    tree = average_linkage(affinities(values))
    assert tree.leaves == (0, 2, 1, 3)
    assert tree.parts is not None
    assert [part.level for part in tree.parts] == pytest.approx([0.8, 0.9])
    assert tree.level == pytest.approx(0.1)


def test_own_entries_play_no_part_and_a_pair_without_a_value_is_refused() -> None:
    values = torch.full((3, 3), 0.5).fill_diagonal_(math.nan)
    assert average_linkage(affinities(values)).level == 0.5
    values[0, 1] = math.nan
    with pytest.raises(SimoError, match="made-up lacks a value of some pair"):
        average_linkage(affinities(values))
