"""Types and shapes of stored tensors: what is known without reading one, and what it becomes in another type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from simo_merge.errors import SimoError

# The names that safetensors gives to types, and the types.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}


@dataclass(frozen=True)
class Stored:
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Whether its values can be merged."""
        return self.dtype.is_floating_point


@runtime_checkable
class KnowsStored(Protocol):
    """A state that can tell type and shape of its tensors without reading them."""

    def stored(self, name: str) -> Stored:
        """Type and shape of one tensor."""
        ...


def stored_in(state: Mapping[str, Tensor], name: str) -> Stored:
    """Type and shape of a tensor of a state dict, of a lazy one without reading it."""
    if isinstance(state, KnowsStored):
        return state.stored(name)
    tensor = state[name]
    return Stored(tensor.dtype, tuple(tensor.shape))


def stored_as(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor in the type that it is stored in, on the CPU.

    Raises:
        SimoError: a narrower type whose range its values exceed; they would become infinite.
    """
    if dtype.is_floating_point and dtype.itemsize < tensor.dtype.itemsize and tensor.numel():
        extremes = torch.stack(tensor.detach().aminmax())  # rounding keeps the order, so these two tell of all
        if not extremes.to(dtype).float().isfinite().all():
            raise SimoError(
                f"{name} has merged values from {extremes[0].item():g} to {extremes[1].item():g}, which {dtype} cannot "
                "hold; write float32 (--dtype float32)"
            )
    return tensor.detach().to("cpu", dtype)
