"""The tokens of calibration images on their way through an encoder, one block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simo_merge.data import DenseDataset
from simo_merge.data.loading import Reader, load
from simo_merge.models import Encoder
from simo_merge.models.blocks import Beside, block_inputs, run_block, used_blocks
from simo_merge.realign.inside.places import OUTPUT, Place, watched
from simo_merge.scoring import BATCH_SIZE


@dataclass
class Stream:
    """The residual stream of an encoder: tokens (B, N, C) of each batch of images, on the CPU.

    They take images x tokens x channels x 4 bytes, and once more while a block runs.
    """

    blocks: list[nn.Module]
    tokens: list[Tensor]
    beside: list[Sequence[Beside]]
    device: torch.device

    @classmethod
    def of(cls, encoder: Encoder, images: DenseDataset, which: range, device: torch.device) -> Stream:
        """Some of the images before the first block; the encoder is on the device already."""
        tokens: list[Tensor] = []
        beside: list[Sequence[Beside]] = []
        plan = [which[start : start + BATCH_SIZE] for start in range(0, len(which), BATCH_SIZE)]
        with torch.no_grad():
            for batch in load(Reader(images), plan):
                found = block_inputs(encoder, batch.images.to(device))
                tokens.append(found.tokens.float().cpu())
                beside.append(found.beside)
        return cls(used_blocks(encoder), tokens, beside, device)

    def run(self, index: int, part: int) -> Tensor:
        """One batch's tokens behind block `index`, before which they lie; on the device."""
        return self.run_block(index, part, self.tokens[part].to(self.device))

    def run_block(self, index: int, part: int, tokens: Tensor) -> Tensor:
        """Tokens of one batch behind block `index`, wherever the stream lies."""
        return run_block(self.blocks[index], tokens, self.beside[part][index])

    def advance(self, index: int) -> None:
        """Go through block `index`."""
        with torch.no_grad():
            self.tokens = [self.run(index, part).float().cpu() for part in range(len(self.tokens))]

    def watch_and_advance(self, index: int, places: list[Place]) -> list[dict[str, Tensor]]:
        """Go through block `index`; for each batch, what was recorded at the places of comparison, on the CPU."""
        found, tokens = [], []
        with torch.no_grad(), watched(self.blocks[index], places) as seen:
            for part in range(len(self.tokens)):
                seen.values[OUTPUT] = self.run(index, part)
                tokens.append(seen.values[OUTPUT].float().cpu())
                found.append({place.at: seen.values[place.at].float().cpu() for place in places})
        self.tokens = tokens
        return found
