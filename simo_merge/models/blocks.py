"""An encoder run block by block: what reaches its first block, and what each block makes of tokens."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simo_merge.models.encoder import Encoder

Beside = Mapping[str, Any]
"""What a block is given beside tokens, by keyword: position embeddings that rotate, masks."""


@dataclass(frozen=True)
class BlockInputs:
    """What a batch of images becomes before the blocks.

    tokens: (B, N, C), prefix tokens first. beside: for each block up to the last tap, what it is given beside them.
    """

    tokens: Tensor
    beside: tuple[Beside, ...]


def block_label(block: int) -> str:
    """What a block is called in tables and pages, counted from 0 as taps are."""
    return f"block {block}"


def used_blocks(encoder: Encoder) -> list[nn.Module]:
    """The blocks up to the last tap; those behind it serve nobody."""
    return [encoder.vit.get_submodule(f"blocks.{index}") for index in range(encoder.taps[-1] + 1)]


def block_inputs(encoder: Encoder, images: Tensor) -> BlockInputs:
    """Embed images without running a block; images as `Encoder` takes them."""
    reached: list[tuple[Tensor, Beside]] = []
    # timm embeds, so that embeddings stay its business, and finds these blocks behind them. The copies are shallow:
    # they share all weights, and whoever runs the encoder meanwhile finds it as it is.
    vit, front = copy.copy(encoder.vit), copy.copy(encoder)
    passing = nn.ModuleList(_Passing(reached) for _ in used_blocks(encoder))
    vit.__dict__["_modules"] = {**encoder.vit._modules, "blocks": passing}
    vit.__dict__["grad_checkpointing"] = False
    front.__dict__["_modules"] = {**encoder._modules, "vit": vit}
    Encoder.forward(front, images)
    return BlockInputs(reached[0][0], tuple(beside for _, beside in reached))


def run_block(block: nn.Module, tokens: Tensor, beside: Beside) -> Tensor:
    """Tokens (B, N, C) through a block, which has to lie where they do."""
    output: Tensor = block(tokens, **on_device(beside, tokens.device))
    return output


def on_device(beside: Beside, device: torch.device) -> dict[str, Any]:
    """The same on a device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in beside.items()}


class _Passing(nn.Module):
    """Stands where a block stood: says what reached it, and passes the tokens on."""

    def __init__(self, reached: list[tuple[Tensor, Beside]]) -> None:
        super().__init__()
        self.reached = reached

    def forward(self, tokens: Tensor, **beside: Any) -> Tensor:
        self.reached.append((tokens, beside))
        return tokens
