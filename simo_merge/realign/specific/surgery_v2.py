"""SurgeryV2: a surgery module for every task behind every block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from simo_merge.errors import SimoError
from simo_merge.models import Aligner, BlockChange
from simo_merge.models.aligners import FullAffineTap, LinearSurgeryTap
from simo_merge.models.blocks import run_block
from simo_merge.progress import progress
from simo_merge.realign.chosen import write_change
from simo_merge.realign.closed_form import solve_change
from simo_merge.realign.moments import TapMoments, tap_moments
from simo_merge.realign.realignment import check_rank
from simo_merge.realign.specific.block_by_block import BlockByBlock
from simo_merge.realign.specific.walk import Here, Propose, Walk


@dataclass(frozen=True)
class SurgeryV2(BlockByBlock):
    """Z + W_up W_down Z + b for each task behind every block, in closed form.

    Block after block, on the stream that the task's corrections before have left, the map of least squared error to
    the expert's stream behind the same block: ridge regression of reduced rank (`closed_form.solve_change`), from
    moments of all tokens. Nothing is run backwards, and there is no learning rate.

    rank: of each map; None for full matrices. ridge: relative to unit variance.
    from_block, held_out, prefix: see `BlockByBlock`; a prefix token always counts for all patches in the fit itself.

    Source: arXiv 2410.14389 (a module for each task behind every block, fitted to the expert's features there; rank
    16, or 4 for ViT-L). Ours: the linear map and its closed form, the order, and the choice by held-out images.
    """

    name: ClassVar[str] = "surgery-v2"
    rank: int | None = 16
    ridge: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(1 if self.rank is None else self.rank, self.ridge)

    def proposals(self, walk: Walk, blocks: range, seed: int) -> Propose:
        """Every block's map is solved where the walk has come to it."""
        return self._solve

    def _solve(self, here: Here) -> BlockChange:
        change = BlockChange(behind=self._options(here))
        moments = block_moments(here)
        module = cast(LinearSurgeryTap | FullAffineTap, cast(Aligner, change.behind).taps[0])
        rank = None if self.rank is None else min(self.rank, here.channels)
        write_change(module, solve_change(moments, here.task, rank, self.ridge))
        return change.to(here.ours.device)

    def _options(self, here: Here) -> dict[str, Any]:
        kind = {"kind": "full-affine"} if self.rank is None else {"kind": "linear-surgery"}
        rank = {} if self.rank is None else {"rank": min(self.rank, here.channels)}
        return {**kind, "tap_channels": [here.channels], "prefix_tokens": here.prefix, **rank}


def block_moments(here: Here) -> TapMoments:
    """Moments of the task's stream behind a block and of the expert's, on the CPU."""
    found = []
    for ours, theirs in zip(here.plain, here.theirs.tokens, strict=True):
        x, y = (tokens.to(here.ours.device) for tokens in (ours, theirs))
        patches, prefix = {here.task: y[:, here.prefix :]}, {here.task: y[:, : here.prefix]}
        found.append(tap_moments(x[:, here.prefix :], x[:, : here.prefix], patches, prefix, precise=False))
    return reduce(add, found).to(torch.device("cpu"))


@dataclass(frozen=True)
class GradientSurgeryV2(BlockByBlock):
    """Z - W_up ReLU(W_down Z) for each task behind every block, as published: by Adam on the L1 distance.

    All modules of a task are tuned together, with gradients through the encoder's blocks, on the sum over blocks of the
    mean absolute difference to the expert's stream; a step takes one batch, as the images are read. The images held out
    then keep or drop each block's module in forward order.

    rank, steps, lr: as in the paper (rank 16, 500 steps of 16 images, 1e-3).
    from_block, held_out, prefix: see `BlockByBlock`; the loss counts all tokens alike.

    A step is a pass forward and back through the encoder and one forward through the expert.

    Source: arXiv 2410.14389; per token instead of the mean over an image's tokens, since dense decoders read every
    token, and without the term of the pooled feature, which they do not have.
    """

    name: ClassVar[str] = "surgery-v2-gradient"
    rank: int = 16
    steps: int = 500
    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank, 1.0)
        if self.steps < 1 or not 0 < self.lr < math.inf:
            raise SimoError(f"{self.name} takes 1 or more steps and a positive lr, got {self.steps} and {self.lr}")

    def proposals(self, walk: Walk, blocks: range, seed: int) -> Propose:
        """All modules are tuned before the walk begins."""
        torch.manual_seed(seed)  # initial weights
        ours, theirs = walk.fitted.ours, walk.fitted.theirs
        channels = ours.tokens[0].shape[2]
        prefix = ours.tokens[0].shape[1] - walk.grid[0] * walk.grid[1]
        options = {"kind": "surgery", "tap_channels": [channels], "prefix_tokens": prefix, "rank": self.rank}
        changes = {index: BlockChange(behind=options).to(ours.device) for index in blocks}
        parameters = [parameter for change in changes.values() for parameter in change.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.lr)
        generator = torch.Generator().manual_seed(seed)
        order: list[int] = []
        with _frozen(ours.blocks + theirs.blocks):
            for _ in progress(range(self.steps), self.steps, f"{self.name}: {walk.task}"):
                order = order or torch.randperm(len(ours.tokens), generator=generator).tolist()
                loss = _distance(walk, changes, order.pop())
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return lambda here: changes[here.index]


def _distance(walk: Walk, changes: dict[int, BlockChange], part: int) -> Tensor:
    """Sum over the changed blocks of the mean absolute difference to the expert behind each, for one batch."""
    ours, theirs = walk.fitted.ours, walk.fitted.theirs
    x, y = ours.tokens[part].to(ours.device), theirs.tokens[part].to(theirs.device)
    loss = x.new_zeros(())
    for index, change in changes.items():
        with torch.no_grad():
            y = run_block(theirs.blocks[index], y, theirs.beside[part][index])
        x = change(ours.blocks[index], x, ours.beside[part][index], walk.grid)
        loss = loss + (x - y).abs().mean()
    return loss


@contextmanager
def _frozen(modules: list[nn.Module]) -> Iterator[None]:
    """The parameters of these modules take no gradients meanwhile."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
