"""Whether two runs trained the same, where the order of sums differs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """How far apart two runs ended, as a share of how far they went: Σ |ours − theirs| / Σ |theirs − start|.

    Adam moves a weight by its learning rate whatever the size of its gradient. Where that is 0 but for rounding (the
    bias of attention's keys) runs go separate ways, so single weights say nothing.
    """
    assert ours.keys() == theirs.keys() == start.keys()
    apart = sum(float((ours[name].double() - value.double()).abs().sum()) for name, value in theirs.items())
    way = sum(float((start[name].double() - value.double()).abs().sum()) for name, value in theirs.items())
    return apart / way
