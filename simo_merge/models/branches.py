"""One encoder that tasks run differently from some block on: what they share is run once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from simo_merge.models.block_changes import BlockChanges
from simo_merge.models.blocks import BlockInputs, block_inputs, run_block, used_blocks
from simo_merge.models.encoder import Encoder, Taps


def branching_taps(
    encoder: Encoder, changes: Mapping[str, BlockChanges], images: Tensor, tasks: Sequence[str]
) -> dict[str, Taps]:
    """What each of these tasks' decoders reads; images as `Encoder` takes them.

    The encoder is run as it is up to each task's first changed block, once for all of them, and from there on for
    that task alone. A task without changes reads the encoder as it is.
    """
    stem = _Branch.of(encoder, images)
    found = {}
    for task in sorted(tasks, key=lambda task: first_change(changes.get(task), len(stem.blocks))):
        stem = stem.run(first_change(changes.get(task), len(stem.blocks)))
        found[task] = stem.run(len(stem.blocks), changes.get(task)).taps()
    return {task: found[task] for task in tasks}


def first_change(changes: BlockChanges | None, blocks: int) -> int:
    """The first block that a task runs for itself; the number of blocks where there is none."""
    return blocks if changes is None else min(changes.indices)


def branching_passes(firsts: Sequence[int], blocks: int) -> float:
    """Encoder passes for one image and all tasks: how often a block is run, over the number of blocks.

        (max_t f_t + sum_t (L - f_t)) / L,

    f_t the first block that task t runs for itself (L where there is none), L the blocks up to the last tap. Where all
    tasks branch off at one block that is 1 + (T - 1) (L - f) / L. Rounded to four digits behind the point; an int where
    it is whole.
    """
    runs = max(firsts) + sum(blocks - first for first in firsts)
    return runs // blocks if runs % blocks == 0 else round(runs / blocks, 4)


class TaskEncoder(Encoder):
    """A view of an encoder as one task runs it: the weights are the encoder's own, not copies of them."""

    def __init__(self, encoder: Encoder, changes: BlockChanges) -> None:
        super().__init__(encoder.vit, encoder.name, encoder.taps)
        self.mean, self.std = encoder.mean, encoder.std
        self.changes = changes

    def forward(self, images: Tensor) -> Taps:
        """Features of the images at the taps; see `Encoder.forward`."""
        return branching_taps(self, {self.name: self.changes}, images, [self.name])[self.name]


@dataclass(frozen=True)
class _Branch:
    """Tokens on their way: before which block they lie, and what the taps on their way were given."""

    encoder: Encoder
    blocks: list[nn.Module]
    inputs: BlockInputs
    grid: tuple[int, int]
    tokens: Tensor
    index: int = 0
    read: tuple[Tensor, ...] = field(default=())

    @classmethod
    def of(cls, encoder: Encoder, images: Tensor) -> _Branch:
        inputs = block_inputs(encoder, images)
        return cls(encoder, used_blocks(encoder), inputs, encoder.grid(*images.shape[-2:]), inputs.tokens)

    def run(self, end: int, changes: BlockChanges | None = None) -> _Branch:
        """The same tokens before block `end`."""
        tokens, read = self.tokens, self.read
        for index in range(self.index, end):
            change = changes.change(index) if changes is not None else None
            block, beside = self.blocks[index], self.inputs.beside[index]
            tokens = run_block(block, tokens, beside) if change is None else change(block, tokens, beside, self.grid)
            if index in self.encoder.taps:
                read = (*read, tokens)
        return replace(self, tokens=tokens, index=end, read=read)

    def taps(self) -> Taps:
        """What the taps were given: (B, P + h*w, C) -> maps (B, C, h, w) and prefix tokens (B, P, C)."""
        prefix, (height, width) = self.encoder.prefix_tokens, self.grid
        maps = [t[:, prefix:].reshape(len(t), height, width, -1).permute(0, 3, 1, 2) for t in self.read]
        return Taps(tuple(m.contiguous() for m in maps), tuple(t[:, :prefix] for t in self.read))
