"""Position embeddings of another grid, resampled to the base's."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import cast

from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.stored import Stored, stored_in

_LOG = logging.getLogger(__name__)
POSITIONS = "pos_embed"
_PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")  # (1, tokens, C) each


class ResampledPositions(Mapping[str, Tensor]):
    """A state whose position embeddings (1, P + h*w, C) have the shape of the base's, (1, P + H*W, C).

    They are resampled by timm's own function (bicubic, antialiased) when they are read. Square grids only: a state
    dict does not say the sides of another.

    Args:
        state: the expert's tensors.
        shape: of the base's position embeddings.
        label: what to call the expert in messages.

    Raises:
        SimoError: other channels, or a number of positions that is no square grid beside P prefix tokens.
    """

    def __init__(self, state: Mapping[str, Tensor], shape: tuple[int, ...], label: str) -> None:
        self._state, self._shape = state, shape
        held = stored_in(state, POSITIONS).shape
        self._prefix, self._old, self._new = _grids(held, shape, _prefix_tokens(state), label)
        _LOG.info("%s: position embeddings resampled from %dx%d to %dx%d", label, *(self._old * 2), *(self._new * 2))

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._state[name]
        if name != POSITIONS:
            return tensor
        from timm.layers.pos_embed import resample_abs_pos_embed  # here: timm takes a second to import

        resampled = resample_abs_pos_embed(
            tensor.detach().float(), list(self._new * 2), list(self._old * 2), num_prefix_tokens=self._prefix
        )
        return cast(Tensor, resampled)

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def __contains__(self, name: object) -> bool:
        return name in self._state

    def stored(self, name: str) -> Stored:
        """Type and shape of one tensor."""
        stored = stored_in(self._state, name)
        return Stored(stored.dtype, self._shape) if name == POSITIONS else stored


def _prefix_tokens(state: Mapping[str, Tensor]) -> int:
    """How many prefix tokens a timm ViT has; whether they have position embeddings differs from model to model."""
    return sum(stored_in(state, name).shape[1] for name in _PREFIX_TOKENS if name in state)


def _grids(
    held: tuple[int, ...], wanted: tuple[int, ...], prefix_tokens: int, label: str
) -> tuple[int, tuple[int], tuple[int]]:
    """Number of prefix tokens with position embeddings, and the sides of both grids."""
    if len(held) == len(wanted) == 3 and held[2] == wanted[2]:
        for prefix in (prefix_tokens, 0):
            old, new = (math.isqrt(max(shape[1] - prefix, 0)) for shape in (held, wanted))
            if old and new and old * old + prefix == held[1] and new * new + prefix == wanted[1]:
                return prefix, (old,), (new,)
    raise SimoError(
        f"{label} has {POSITIONS} of shape {held}, the base {wanted}: not both are square grids of one width, so they "
        "cannot be resampled; train the expert with the image size of the base"
    )
