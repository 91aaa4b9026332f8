"""Experts that add nothing of their own: equal to the base, or to another expert."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from simo_merge.merging.stored import stored_in

_LOG = logging.getLogger(__name__)
State = Mapping[str, Tensor]


def warn_of_duplicates(base: State, experts: Sequence[State], labels: Sequence[str]) -> None:
    """Say which experts have the very weights of the base, or of another expert.

    A merge of them is defined, but hardly what was meant. A comparison ends at the first tensor that differs, so
    experts that do differ cost little to look at.

    Args:
        base: the base's tensors.
        experts: the experts', of the same names and shapes.
        labels: what to call base and experts.
    """
    states = (base, *experts)
    for later in range(1, len(states)):
        earlier = next((i for i in range(later) if _equal(states[i], states[later])), None)
        if earlier == 0:
            _LOG.warning(
                "%s has the same weights as %s: its task vector is zero, so it only dilutes or shrinks the merge; give "
                "the fine-tuned weights, or leave it out",
                labels[later],
                labels[0],
            )
        elif earlier is not None:
            _LOG.warning(
                "%s has the same weights as %s, so these count twice; give each expert once",
                labels[later],
                labels[earlier],
            )


def _equal(one: State, other: State) -> bool:
    """Whether all floating-point tensors are equal; those of different types by their values."""
    return all(
        torch.equal(*_alike(one[name], other[name])) for name in one if stored_in(one, name).is_float and name in other
    )


def _alike(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(one.dtype, other.dtype)
    return one.detach().to("cpu", wide), other.detach().to("cpu", wide)
