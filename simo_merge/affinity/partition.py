"""The best partitions of a few items into at most K groups, by what each group is worth."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import combinations

EXACT = "dynamic programming over subsets"
HEURISTIC = "greedy agglomeration with exchanges"
EXACT_ITEMS = 12
"""So many items are partitioned exactly: 3^12 steps are about a second."""

Groups = tuple[tuple[int, ...], ...]
Worth = Callable[[tuple[int, ...]], int]
"""What a group of items, in order, is worth; whole numbers, so that sums do not depend on their order."""

_Key = tuple[int, int, Groups]
_ENOUGH = 2  # the best and the runner-up


def best_partitions(items: int, groups: int, worth: Worth, method: str | None = None) -> tuple[list[Groups], str]:
    """The best partition of `range(items)` into at most so many groups, the one after it, and how they were found.

    Of partitions worth the same, those of fewer groups come first, then those whose first group comes first in order.

    Args:
        items: their number.
        groups: the most there may be, 1 to `items`.
        worth: of a group; a partition is worth their sum.
        method: `EXACT` or `HEURISTIC`; None is exact up to `EXACT_ITEMS` items. The heuristic's runner-up is the best
            that is one move or swap away from what it found.

    Returns:
        One partition or two, best first (there is one alone of one item, or in one group), and the method.
    """
    worth = cache(worth)
    chosen = method or (EXACT if items <= EXACT_ITEMS else HEURISTIC)
    keys = _exact(items, groups, worth) if chosen == EXACT else _heuristic(items, groups, worth)
    return [found for _, _, found in keys[:_ENOUGH]], chosen


def _exact(items: int, groups: int, worth: Worth) -> list[_Key]:
    """best(S, k) = max over A in S that hold S's first item of worth(A) + best(S less A, k - 1).

    Because A holds the first item, every partition is met once; so the two best of each S give the two best of all.
    """
    members = [tuple(i for i in range(items) if mask >> i & 1) for mask in range(1 << items)]

    @cache
    def best(mask: int, left: int) -> list[_Key]:
        if not mask:
            return [(0, 0, ())]
        return heapq.nsmallest(_ENOUGH, candidates(mask, left)) if left else []

    def candidates(mask: int, left: int) -> Iterator[_Key]:
        first = mask & -mask
        rest = others = mask ^ first
        while True:  # over the subsets of what may join the first item
            group = members[first | others]
            own = worth(group)
            for value, count, after in best(rest ^ others, left - 1):
                yield value - own, count + 1, (group, *after)
            if not others:
                return
            others = (others - 1) & rest

    return best((1 << items) - 1, groups)


def _heuristic(items: int, groups: int, worth: Worth) -> list[_Key]:
    """Joins and exchanges, greedily.

    From single items the two groups are joined that gain most (or lose least), until they are few enough and none
    gains; then the best move or swap of items is made as long as one gains.
    """
    state: Groups = tuple((item,) for item in range(items))
    while len(state) > 1:
        joined = min(_key(_normal([*_without(state, a, b), (*a, *b)]), worth) for a, b in combinations(state, 2))
        if len(state) <= groups and joined >= _key(state, worth):
            break
        state = joined[2]
    own = _key(state, worth)
    while True:
        near = sorted(_key(other, worth) for other in _neighbours(own[2], groups))
        if not near or near[0] >= own:
            return [own, *near[:1]]
        own = near[0]


def _neighbours(state: Groups, groups: int) -> Iterator[Groups]:
    """What one item's move to another group or to one of its own gives, and what a swap of two items gives."""
    for group in state:
        for item in group:
            left = tuple(i for i in group if i != item)
            for other in state:
                if other != group:
                    yield _normal([*_without(state, group, other), left, (*other, item)])
            if left and len(state) < groups:
                yield _normal([*_without(state, group), left, (item,)])
    for a, b in combinations(state, 2):
        for i in a:
            for j in b:
                ours, theirs = (*(m for m in a if m != i), j), (*(m for m in b if m != j), i)
                if len(a) > 1 or len(b) > 1:
                    yield _normal([*_without(state, a, b), ours, theirs])


def _without(state: Groups, *left_out: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [group for group in state if group not in left_out]


def _normal(state: Sequence[tuple[int, ...]]) -> Groups:
    return tuple(sorted(tuple(sorted(group)) for group in state if group))


def _key(state: Groups, worth: Worth) -> _Key:
    return -sum(worth(group) for group in state), len(state), state
