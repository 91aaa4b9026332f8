"""What one task changes inside the shared encoder: LayerNorms of its own, and corrections behind blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from simo_merge.errors import SimoError
from simo_merge.models.aligners import Aligner, aligner_from_config
from simo_merge.models.blocks import Beside, on_device


class ScaleShift(nn.Module):
    """A task's own weight and bias of a LayerNorm of the encoder; fresh ones are those of a fresh LayerNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))


class BlockChange(nn.Module):
    """A block of the encoder as one task runs it: z -> behind(block(z)).

    The block's weights are the encoder's, but for the LayerNorms that the task has for itself.

    Args:
        norms: names of LayerNorms in the block, and how many channels each has.
        behind: the correction of the tokens behind the block, as the config of an aligner of one tap.
    """

    def __init__(self, norms: Mapping[str, int] | None = None, behind: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.names = tuple(norms or {})
        self.norms = nn.ModuleList(ScaleShift(channels) for channels in (norms or {}).values())
        self.behind: Aligner | None = None if behind is None else aligner_from_config(behind)

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds it, as plain JSON values."""
        widths = [cast(ScaleShift, norm).weight.numel() for norm in self.norms]
        found: dict[str, Any] = {"norms": dict(zip(self.names, widths, strict=True))} if self.names else {}
        return found if self.behind is None else {**found, "behind": self.behind.config}

    def norm(self, name: str) -> ScaleShift:
        """The task's own scale and shift of one of the block's LayerNorms."""
        return cast(ScaleShift, self.norms[self.names.index(name)])

    def forward(self, block: nn.Module, tokens: Tensor, beside: Beside, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, C), prefix tokens first, through the block and the correction; grid = (h, w) of the patches."""
        given = on_device(beside, tokens.device)
        if not self.names:
            return self.correct(block(tokens, **given), grid)
        own: dict[str, Tensor] = {}
        for name, norm in zip(self.names, self.norms, strict=True):
            own |= {f"{name}.{part}": value for part, value in norm.named_parameters()}
        return self.correct(functional_call(block, own, (tokens,), given), grid)

    def correct(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The correction alone, of tokens (B, N, C) that the block gave."""
        if self.behind is None:
            return tokens
        prefix = tokens.shape[1] - grid[0] * grid[1]
        patches, rest = self.behind.tokens([tokens[:, prefix:]], [tokens[:, :prefix]], grid)
        return torch.cat([rest[0], patches[0]], dim=1)


class BlockChanges(nn.Module):
    """All that one task changes inside the encoder, by block; the other blocks it runs as they are.

    Args:
        blocks: the change of each changed block, by its index; one at least.

    Raises:
        SimoError: no block, or a negative index.
    """

    def __init__(self, blocks: Mapping[int, BlockChange]) -> None:
        super().__init__()
        if not blocks or min(blocks) < 0:
            raise SimoError(f"changes inside the encoder are of one block or more, counted from 0; got {list(blocks)}")
        self.blocks = nn.ModuleDict({str(index): blocks[index] for index in sorted(blocks)})

    @property
    def config(self) -> dict[str, Any]:
        """What `block_changes_from_config` rebuilds it from, as plain JSON values."""
        return {"blocks": {index: cast(BlockChange, change).config for index, change in self.blocks.items()}}

    @property
    def indices(self) -> tuple[int, ...]:
        """The changed blocks, in order."""
        return tuple(int(index) for index in self.blocks)

    def change(self, index: int) -> BlockChange | None:
        """The change of a block, if there is one."""
        return cast(BlockChange, self.blocks[str(index)]) if str(index) in self.blocks else None


def block_changes_from_config(config: Mapping[str, Any]) -> BlockChanges:
    """The changes that `config` (see `BlockChanges.config`) describes, with fresh weights.

    Raises:
        SimoError: a config that does not describe changes, or an aligner that there is not.
    """
    try:
        return BlockChanges({int(index): BlockChange(**change) for index, change in config["blocks"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SimoError(f"{dict(config)} does not describe changes of blocks: {error}") from error
