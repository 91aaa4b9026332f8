"""What re-alignments inside the encoder for each task have in common: they go through the blocks task by task."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from simo_merge.data import DenseDataset
from simo_merge.errors import SimoError
from simo_merge.models import BlockChange, BlockChanges, Encoder, MultiTaskModel
from simo_merge.progress import progress
from simo_merge.realign.inside.shares import check_prefix
from simo_merge.realign.inside.streams import Stream
from simo_merge.realign.realignment import Calibration, Realignment, fitted_images
from simo_merge.realign.specific.walk import Pair, Propose, Walk

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BlockByBlock(Realignment):
    """Changes inside the encoder for each task, fitted in forward order on the task's own, already changed, stream.

    From the first changed block on a task needs its own pass; the blocks before are run once for all tasks. The
    encoder's weights stay shared.

    from_block: the first block that may differ between tasks, counted from 0; negative ones count from the last that a
        tap reads. Later is cheaper, and corrects less.
    held_out: share of the images, the last, that nothing is fitted to. A block's change is kept only where the stream
        behind the block comes nearer to the expert's on them (squared error in units of the expert's deviation);
        otherwise the task runs that block as it is. From a single image nothing can be held out, and nothing is
        changed. None: all images are fitted to, and every change is kept.
    prefix: how many patches a prefix token counts for; None: all patches of its image together, as for aligners.

    The record tells, for each task and block, the held-out error without and with what was kept. The tokens of all
    images before one block are kept about five times.

    Raises:
        SimoError: an option out of range.
    """

    task_specific: ClassVar[bool] = True
    from_block: int = 0
    held_out: float | None = 0.2
    prefix: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.held_out is not None:
            fitted_images(1, self.held_out)
        check_prefix(self.prefix)

    @abstractmethod
    def proposals(self, walk: Walk, blocks: range, seed: int) -> Propose:
        """What fits the change of each block, where the walk stands before the first of these blocks."""

    def check(self, model: MultiTaskModel, images: DenseDataset) -> None:
        """Refuse a first block that the encoder does not have."""
        self._blocks(model.encoder)

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Go through the blocks, task by task."""
        blocks = self._blocks(model.encoder)
        first = len(given.images) if self.held_out is None else fitted_images(len(given.images), self.held_out)
        rows = given.record.setdefault("blocks", [])
        if first < 1:
            _LOG.warning("one calibration image leaves none to hold out: the encoder is left as it is")
            return 0
        encoder = model.encoder.to(given.device).eval()
        stem = [self._stream(encoder, given, part, blocks.start) for part in _parts(first, len(given.images))]
        fitted = 0
        for task in model.tasks:
            walk = self._walk(task, stem, given, first, blocks.start)
            propose = self.proposals(walk, blocks, given.seed)
            changes: dict[int, BlockChange] = {}
            for index in progress(blocks, len(blocks), f"{self.name}: {task}"):
                with torch.no_grad():
                    change, row = walk.block(index, propose)
                rows.append(row)
                if change is not None:
                    changes[index] = change
            if changes:
                model.block_changes[task] = BlockChanges(changes)
            fitted += sum(parameter.numel() for change in changes.values() for parameter in change.parameters())
        return fitted

    def _blocks(self, encoder: Encoder) -> range:
        count = encoder.taps[-1] + 1
        start = self.from_block + count if self.from_block < 0 else self.from_block
        if not 0 <= start < count:
            raise SimoError(
                f"from_block {self.from_block} is out of range: the taps of {encoder.name} read blocks 0 to {count - 1}"
            )
        return range(start, count)

    def _stream(self, encoder: Encoder, given: Calibration, which: range, start: int) -> Stream:
        stream = Stream.of(encoder, given.images, which, given.device)
        for index in range(start):
            stream.advance(index)
        return stream

    def _walk(self, task: str, stem: Sequence[Stream], given: Calibration, first: int, start: int) -> Walk:
        expert = copy.deepcopy(given.experts[task].encoder).to(given.device).eval()
        parts = _parts(first, len(given.images))
        pairs = [
            Pair(replace(ours), self._stream(expert, given, which, start))
            for ours, which in zip(stem, parts, strict=True)
        ]
        grid = given.features.merged.grid
        prefix = float(grid[0] * grid[1]) if self.prefix is None else self.prefix
        return Walk(task, pairs[0], pairs[1] if len(pairs) > 1 else None, grid, prefix)


def _parts(first: int, images: int) -> list[range]:
    """The images that are fitted to, and those held out, if there are any."""
    return [range(first), *([range(first, images)] if first < images else [])]
