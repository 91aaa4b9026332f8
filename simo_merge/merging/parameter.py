"""What a merge method sees: one parameter of the base, and what the experts made of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from simo_merge.merging.memory import Memory
from simo_merge.models.blocks import block_label

_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers|layer|resblocks|h)\.(\d+)\.")
_BEFORE = re.compile(  # as timm, DINOv2, DINOv3, open_clip and transformers name them
    r"(?:^|\.)(?:cls_token|reg_token|register_tokens|storage_tokens|dist_token|mask_token|class_embedding"
    r"|pos_embed|positional_embedding|rope|rope_embed|rel_pos_bias|patch_embed|embeddings|conv1|norm_pre|ln_pre)(?:\.|$)"
)


@dataclass(frozen=True)
class Parameter:
    """One floating-point tensor of the base and of every expert, in float32 (or wider), on one device.

    Attributes:
        name: Its name in the state dict.
        base: theta_0, of any shape (...).
        experts: theta_1 to theta_T, each of the base's shape.
        layer: Which layer it belongs to: 0 what comes before the blocks, i + 1 block i, blocks + 1 what comes after.
        layers: Number of layers, blocks + 2.
        start: Where a piece of a parameter, flattened, begins in it.
        memory: For what is needed while this parameter is worked on.
        streams: Whether what is merged is done with before the next parameters are.
    """

    name: str
    base: Tensor
    experts: tuple[Tensor, ...]
    layer: int = 0
    layers: int = 1
    start: int = 0
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)
    streams: bool = False

    def empty(self) -> Tensor:
        """Room for what becomes of the parameter: a tensor like the base, with unspecified values."""
        if not self.streams or self.base.device.type != "cpu":
            return torch.empty_like(self.base, memory_format=torch.contiguous_format)
        return self.memory.tensor(self.base.shape, self.base.dtype)

    @cached_property
    def vectors(self) -> Tensor:
        """The task vectors tau_t = theta_t - theta_0, stacked: (T, ...)."""
        return torch.stack([expert - self.base for expert in self.experts])

    @property
    def count(self) -> int:
        """T, the number of experts."""
        return len(self.experts)


Parameters = Callable[[], Iterator[Parameter]]
"""Makes a fresh pass over all parameters; each pass reads every file once."""

R = TypeVar("R")


@dataclass(frozen=True)
class Passes:
    """`Parameters` on several cores.

    in_order: a pass that gives every parameter in order. mapped: a pass that computes something of each.
    """

    in_order: Parameters
    mapped: Callable[[Callable[[Parameter], Any]], Iterator[Any]]

    def __call__(self) -> Iterator[Parameter]:
        """Every parameter, in order."""
        return self.in_order()


def map_parameters(parameters: Parameters, compute: Callable[[Parameter], R]) -> Iterator[R]:
    """A pass that computes something of every parameter, on several cores where `parameters` can do so; in order."""
    return parameters.mapped(compute) if isinstance(parameters, Passes) else map(compute, parameters())


def count_blocks(names: Sequence[str]) -> int:
    """How many transformer blocks the names of a state dict tell of; 0 when they tell of none."""
    return max((int(match[1]) + 1 for name in names if (match := _BLOCK.search(name))), default=0)


def layer_of(name: str, blocks: int) -> int:
    """The layer of a parameter, as `Parameter.layer` counts."""
    match = _BLOCK.search(name)
    if match is not None:
        return int(match[1]) + 1
    return 0 if _BEFORE.search(name) else blocks + 1


def layer_label(parameter: Parameter) -> str:
    """What a parameter's layer is called: `embeddings`, `block 0` ..., `final`."""
    if parameter.layer == 0:
        return "embeddings"
    return "final" if parameter.layer == parameter.layers - 1 else block_label(parameter.layer - 1)


def kind_of(name: str) -> str:
    """The kind of module that a parameter belongs to, the same in every block: `attn.qkv`, `norm1`, `patch_embed.proj`.

    Parameters that are no module's weight or bias (`cls_token`) are a kind of their own.
    """
    match = _BLOCK.search(name)
    return (name if match is None else name[match.end() :]).removesuffix(".weight").removesuffix(".bias")
