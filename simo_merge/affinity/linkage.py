"""A tree of tasks by average linkage: which are near, which pairs of groups come next."""

from __future__ import annotations

from dataclasses import dataclass

from simo_merge.affinity.matrix import AffinityMatrix
from simo_merge.errors import SimoError


@dataclass(frozen=True)
class Branch:
    """A part of the tree.

    leaves: its tasks, by number, in the order of drawing. parts: the two that were joined; None of a single task.
    level: mean affinity between the two parts; NaN of a single task.
    """

    leaves: tuple[int, ...]
    parts: tuple[Branch, Branch] | None
    level: float


def average_linkage(matrix: AffinityMatrix) -> Branch:
    """The tree that joins, again and again, the two groups whose tasks are on average the closest.

    level(A, B) = mean over s in A, t in B of (Z[s, t] + Z[t, s]) / 2. Levels never rise on the way to the root.

    Raises:
        SimoError: a pair without a value.

    Source: average linkage (UPGMA), Sokal and Michener 1958, on affinities instead of distances.
    """
    values = matrix.mutual().tolist()
    branches = [Branch((i,), None, float("nan")) for i in range(len(matrix.tasks))]
    while len(branches) > 1:
        found = []
        for i, one in enumerate(branches):
            for j, other in enumerate(branches[:i]):
                pairs = [values[a][b] for a in one.leaves for b in other.leaves]
                found.append((-sum(pairs) / len(pairs), j, i))
        if any(level != level for level, _, _ in found):
            raise SimoError(f"{matrix.name} lacks a value of some pair; a tree of tasks needs them all")
        level, j, i = min(found)
        joined = Branch(branches[j].leaves + branches[i].leaves, (branches[j], branches[i]), -level)
        branches = [branch for k, branch in enumerate(branches) if k not in (i, j)]
        branches.insert(j, joined)
    return branches[0]
