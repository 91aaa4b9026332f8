"""One task's changes, block after block: what a block makes of the task's own stream, and whether a change is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simo_merge.models import BlockChange
from simo_merge.realign.closed_form import error_scale
from simo_merge.realign.inside.streams import Stream
from simo_merge.realign.inside.tap_errors import token_error
from simo_merge.realign.realignment import short


@dataclass
class Pair:
    """The same images in the shared encoder, with the task's changes so far, and in the task's expert."""

    ours: Stream
    theirs: Stream


@dataclass(frozen=True)
class Here:
    """A block, what reaches it, and what is wanted behind it; lists hold one (B, N, C) a batch, on the CPU.

    ours: the task's stream before the block. plain: behind it, as the shared encoder runs it.
    theirs, before: the expert's stream behind its own block, and what reached that.
    """

    task: str
    index: int
    ours: Stream
    plain: Sequence[Tensor]
    theirs: Stream
    before: Sequence[Tensor]
    grid: tuple[int, int]
    prefix_weight: float

    @property
    def block(self) -> nn.Module:
        """The shared encoder's block."""
        return self.ours.blocks[self.index]

    @property
    def prefix(self) -> int:
        """How many prefix tokens there are."""
        return self.plain[0].shape[1] - self.grid[0] * self.grid[1]

    @property
    def channels(self) -> int:
        """Channels of the stream."""
        return self.plain[0].shape[2]

    def changed(self, change: BlockChange, part: int) -> Tensor:
        """One batch behind the block with a change, on the device."""
        if not change.names:  # what the block gives is known
            return change.correct(self.plain[part].to(self.ours.device), self.grid)
        tokens, beside = self.ours.tokens[part].to(self.ours.device), self.ours.beside[part][self.index]
        found: Tensor = change(self.block, tokens, beside, self.grid)
        return found

    def scale(self) -> Tensor:
        """How large an error in each channel is taken to be, (C,): `error_scale` of the expert's patches."""
        patches = [tokens[:, self.prefix :].flatten(0, 1) for tokens in self.theirs.tokens]
        count, zeros = sum(map(len, patches)), torch.zeros(self.channels, dtype=torch.float64)
        mean = sum((part.sum(0, dtype=torch.float64) for part in patches), start=zeros) / count
        squares = sum(((part.double() - mean).square().sum(0) for part in patches), start=zeros)
        return error_scale((squares / count).sqrt()).float()

    def error(self, outputs: Callable[[int], Tensor], scale: Tensor) -> float:
        """How far outputs, asked for by batch, are from the expert's: mean over tokens and channels, in these units."""
        total, images = 0.0, 0
        for part, wanted in enumerate(self.theirs.tokens):
            found = outputs(part).cpu().float()
            prefix, patches = wanted[:, : self.prefix], wanted[:, self.prefix :]
            total += float(token_error(found, patches, prefix, scale, self.prefix_weight))
            images += len(wanted)
        return total / images


Propose = Callable[[Here], BlockChange]


@dataclass
class Walk:
    """One task's way through the blocks.

    fitted: the images that changes are fitted to. held_out: others, by which they are judged; None: all are kept.
    """

    task: str
    fitted: Pair
    held_out: Pair | None
    grid: tuple[int, int]
    prefix_weight: float

    def block(self, index: int, propose: Propose) -> tuple[BlockChange | None, dict[str, Any]]:
        """Fit a change of block `index`, keep it or not, and go through the block; the change, and what was measured.

        It is kept where the stream behind the block comes nearer to the expert's on the images held out.
        """
        here = self._at(self.fitted, index)
        proposed = propose(here)
        change: BlockChange | None = proposed
        row: dict[str, Any] = {"task": self.task, "block": index, "held_out_before": [], "held_out": []}
        if self.held_out is not None:
            there, scale = self._at(self.held_out, index), here.scale()
            outputs = [there.changed(proposed, part).cpu() for part in range(len(there.plain))]
            before = there.error(there.plain.__getitem__, scale)
            after = there.error(outputs.__getitem__, scale)
            change = change if after < before else None
            self.held_out.ours.tokens = list(there.plain) if change is None else outputs
            row |= {"held_out_before": [short(before)], "held_out": [short(min(before, after))]}
        if change is None:
            self.fitted.ours.tokens = list(here.plain)
        else:
            self.fitted.ours.tokens = [here.changed(change, part).cpu() for part in range(len(here.plain))]
        return change, {**row, "kept": float(change is not None)}

    def _at(self, pair: Pair, index: int) -> Here:
        plain = [pair.ours.run(index, part).float().cpu() for part in range(len(pair.ours.tokens))]
        before = pair.theirs.tokens
        pair.theirs.advance(index)
        return Here(self.task, index, pair.ours, plain, pair.theirs, before, self.grid, self.prefix_weight)
