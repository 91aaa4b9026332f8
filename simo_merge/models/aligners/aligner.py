"""The aligner of a task: one tap aligner a tap, made from a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from simo_merge.errors import SimoError
from simo_merge.models.aligners.base import TapAligner
from simo_merge.models.aligners.linear import CrossTapTap, FullAffineTap, TokenLinearTap
from simo_merge.models.aligners.simple import AffineTap, IdentityTap, MagnitudeTap, ShiftTap
from simo_merge.models.aligners.spatial import SpatialTap
from simo_merge.models.aligners.stretched import StretchedTap
from simo_merge.models.aligners.surgery import LinearSurgeryTap, SurgeryTap
from simo_merge.models.encoder import Taps

PER_TAP = "per-tap"  # an aligner whose taps are of different kinds

TAP_ALIGNERS: dict[str, type[TapAligner]] = {
    "surgery": SurgeryTap,
    "linear-surgery": LinearSurgeryTap,
    "affine": AffineTap,
    "identity": IdentityTap,
    "shift": ShiftTap,
    "magnitude": MagnitudeTap,
    "full-affine": FullAffineTap,
    "cross-tap": CrossTapTap,
    "token-linear": TokenLinearTap,
    "spatial": SpatialTap,
}


class Aligner(nn.Module):
    """One tap aligner a tap: `Taps` -> `Taps` of the same shapes.

    Args:
        kind: a key of `TAP_ALIGNERS`, or "per-tap".
        tap_channels: channels of each tap.
        prefix_tokens: how many prefix tokens there are.
        each: with "per-tap", a kind and its options for each tap: {"kind": ..., "rank": ...}.
        options: further arguments of the tap aligner (`rank`); `stretched` ("channels" or "directions") puts each into
            a `StretchedTap`.

    Raises:
        SimoError: an unknown kind, options that it does not have, an unknown stretch, or not one entry a tap in `each`.
    """

    def __init__(
        self,
        kind: str,
        tap_channels: Sequence[int],
        prefix_tokens: int,
        each: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.config = {
            "kind": kind,
            "tap_channels": list(tap_channels),
            "prefix_tokens": prefix_tokens,
            **({} if each is None else {"each": [dict(e) for e in each]}),
            **options,
        }
        if (kind == PER_TAP) != (each is not None) or (each is not None and len(each) != len(tap_channels)):
            raise SimoError(
                f"an aligner of kind {kind!r} has {'no' if each is None else len(each)} entries in `each` for "
                f"{len(tap_channels)} taps; give one a tap with kind {PER_TAP!r}, and none with any other kind"
            )
        wanted = each if each is not None else [{"kind": kind, **options}] * len(tap_channels)
        self.taps = nn.ModuleList(
            _tap_aligner(dict(one), tap_channels, index, prefix_tokens) for index, one in enumerate(wanted)
        )

    def forward(self, taps: Taps) -> Taps:
        """Aligned taps, computed in the precision of the aligner's weights, whatever autocast says.

        Of a channel whose mean is a hundred times its deviation, bfloat16 would leave no deviation.
        """
        height, width = taps.maps[0].shape[-2:]
        weight = next(self.parameters(), taps.maps[0])
        patches = [m.to(weight.dtype).flatten(2).transpose(1, 2) for m in taps.maps]  # (B, C, h, w) -> (B, h*w, C)
        with torch.autocast(weight.device.type, enabled=False):
            aligned, prefix = self.tokens(patches, [p.to(weight.dtype) for p in taps.prefix], (height, width))
        maps = [a.transpose(1, 2).reshape(m.shape) for a, m in zip(aligned, taps.maps, strict=True)]
        return Taps(tuple(maps), tuple(prefix))

    def tokens(
        self, patches: Sequence[Tensor], prefix: Sequence[Tensor], grid: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Aligned patches (B, h*w, C) and prefix tokens (B, P, C) of every tap; grid = (h, w)."""
        modules = cast(list[TapAligner], list(self.taps))
        reads_all = any(module.reads_all for module in modules)
        everything = (torch.cat(list(patches), dim=-1), torch.cat(list(prefix), dim=-1)) if reads_all else None
        found: list[tuple[Tensor, Tensor]] = []
        for index, module in enumerate(modules):
            if module.reads_all and everything is not None:
                found.append(module(*everything))
            elif module.spatial:
                found.append(module(patches[index], prefix[index], grid))
            else:
                found.append(module(patches[index], prefix[index]))
        return [p for p, _ in found], [z for _, z in found]


def _tap_aligner(wanted: dict[str, Any], tap_channels: Sequence[int], index: int, prefix_tokens: int) -> TapAligner:
    kind, stretched = wanted.pop("kind", None), wanted.pop("stretched", None)
    if kind not in TAP_ALIGNERS:
        raise SimoError(f"unknown aligner {kind!r}; known: {', '.join(sorted(TAP_ALIGNERS))}")
    made = TAP_ALIGNERS[kind]
    place = {"read_channels": sum(tap_channels), "start": sum(tap_channels[:index])} if made.reads_all else {}
    try:
        found = made(tap_channels[index], prefix_tokens, **place, **wanted)
    except TypeError as error:
        raise SimoError(f"the options of aligner {kind!r} do not fit: {error}") from error
    return found if stretched is None else StretchedTap(found, tap_channels[index], stretched)


def aligner_from_config(config: Mapping[str, Any]) -> Aligner:
    """The aligner that `config` (see `Aligner.config`) describes, with fresh weights.

    Raises:
        SimoError: as `Aligner`, or a part of the config that is missing.
    """
    try:
        return Aligner(**config)
    except TypeError as error:
        raise SimoError(f"{dict(config)} does not describe an aligner: {error}") from error
