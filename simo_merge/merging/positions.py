"""Position embeddings of another grid, resampled to the base's."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.stored import Stored, stored_in

_LOG = logging.getLogger(__name__)
POSITIONS = "pos_embed"
OFFER = "resample them with --resample-pos-embed (in Python resample_pos_embed=True)"
"""What messages say of position embeddings of different grids."""
_PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")  # (1, tokens, C) each


@dataclass(frozen=True)
class Grid:
    """How position embeddings (1, P + height*width, C) are laid out: P prefix tokens, then rows of patches."""

    height: int
    width: int
    prefix: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def grid_of(
    state: Mapping[str, Tensor],
    label: str,
    recorded: tuple[int, int] | None = None,
    given: Sequence[tuple[int, int]] = (),
) -> Grid:
    """The layout of a state's position embeddings, which their number alone does not tell.

    Args:
        state: a ViT's tensors, in timm's names.
        label: what to call it in messages.
        recorded: (rows, columns), where its checkpoint says them; nothing else is then tried.
        given: (rows, columns) that a person gave; the first that fits the number of positions is taken, else a square.

    Raises:
        SimoError: a table of another form, or of a number of positions that none of these explains.
    """
    shape = stored_in(state, POSITIONS).shape
    tried = [recorded] if recorded is not None else [*given, None]
    prefixes = (_prefix_tokens(state), 0)  # whether prefix tokens have positions differs from model to model
    for sides in tried if len(shape) == 3 else ():
        for prefix in prefixes:
            patches = shape[1] - prefix
            height, width = sides or (math.isqrt(max(patches, 0)),) * 2
            if height * width == patches > 0:
                return Grid(height, width, prefix)
    grids = " or ".join("a square" if sides is None else f"{sides[0]}x{sides[1]}" for sides in tried)
    raise SimoError(
        f"{label} has {POSITIONS} of shape {shape}, which is not {grids} beside {prefixes[0]} prefix tokens; say how "
        "many rows and columns of patches it has: --pos-embed-grid 9x12 (in Python pos_embed_grids=[(9, 12)])"
    )


class ResampledPositions(Mapping[str, Tensor]):
    """A state whose position embeddings have the grid of the base's: (1, P + h*w, C) -> (1, P + H*W, C).

    They are resampled when they are read, by timm's own function (bicubic, antialiased); prefix tokens are kept.

    Args:
        state: the expert's tensors.
        old: their grid.
        new: the base's.
        label: what to call the expert in messages.

    Raises:
        SimoError: prefix tokens have positions in one and not in the other.
    """

    def __init__(self, state: Mapping[str, Tensor], old: Grid, new: Grid, label: str) -> None:
        if old.prefix != new.prefix:
            raise SimoError(
                f"{label} has positions of {old.prefix} prefix tokens, the base of {new.prefix}: these are different "
                "encoders, and cannot be merged"
            )
        self._state, self._old, self._new = state, old, new
        _LOG.info("%s: position embeddings resampled from %s to %s", label, old, new)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._state[name]
        if name != POSITIONS:
            return tensor
        from timm.layers.pos_embed import resample_abs_pos_embed  # here: timm takes a second to import

        old, new = [self._old.height, self._old.width], [self._new.height, self._new.width]
        resampled = resample_abs_pos_embed(tensor.detach().float(), new, old, num_prefix_tokens=self._old.prefix)
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
        if name != POSITIONS:
            return stored
        tokens = self._new.prefix + self._new.height * self._new.width
        return Stored(stored.dtype, (stored.shape[0], tokens, *stored.shape[2:]))


def _prefix_tokens(state: Mapping[str, Tensor]) -> int:
    """How many prefix tokens a timm ViT has."""
    return sum(stored_in(state, name).shape[1] for name in _PREFIX_TOKENS if name in state)
