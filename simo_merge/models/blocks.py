"""An encoder run block by block: what reaches its first block, and what each block makes of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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


def used_blocks(encoder: Encoder) -> list[nn.Module]:
    """The blocks up to the last tap; those behind it serve nobody."""
    return [encoder.vit.get_submodule(f"blocks.{index}") for index in range(encoder.taps[-1] + 1)]


def block_inputs(encoder: Encoder, images: Tensor) -> BlockInputs:
    """Embed images without running a block; images as `Encoder` takes them."""
    reached: list[tuple[Tensor, Beside]] = []

    def pass_on(tokens: Tensor, **beside: Any) -> Tensor:
        reached.append((tokens, beside))
        return tokens

    with _exchanged(used_blocks(encoder), pass_on):
        encoder(images)
    return BlockInputs(reached[0][0], tuple(beside for _, beside in reached))


def run_block(block: nn.Module, tokens: Tensor, beside: Beside) -> Tensor:
    """Tokens (B, N, C) through a block, which has to lie where they do."""
    given = {name: value.to(tokens.device) if isinstance(value, Tensor) else value for name, value in beside.items()}
    output: Tensor = block(tokens, **given)
    return output


@contextmanager
def _exchanged(blocks: Sequence[nn.Module], forward: Callable[..., Tensor]) -> Iterator[None]:
    """Blocks do something else meanwhile; timm calls them for itself, so that embeddings stay its business."""
    for block in blocks:
        block.__dict__["forward"] = forward
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]
