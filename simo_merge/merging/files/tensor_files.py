"""One file of tensors, read tensor by tensor: safetensors, or a pickle that holds nothing but tensors."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.memory import Memory
from simo_merge.merging.stored import DTYPES, Stored, stored_in
from simo_merge.weights.pickles import unpickled


class TensorFile(Protocol):
    """One file of tensors."""

    def names(self) -> list[str]:
        """The tensors' names, in the file's order."""
        ...

    def stored(self, name: str) -> Stored:
        """Type and shape, without reading the values."""
        ...

    def map(self, name: str) -> Tensor:
        """The tensor, over the mapped file where it can be mapped."""
        ...

    def read(self, name: str, memory: Memory, span: slice | None = None) -> Tensor:
        """The tensor, or a span of it flattened, read into memory that may have been used before."""
        ...


class SafetensorsFile:
    """A `.safetensors` file, mapped into memory.

    Raises:
        SimoError: it is missing, damaged or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = cast(Any, safe_open)(path, framework="pt")
            self._names: list[str] = list(self._file.offset_keys())
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise SimoError(f"{path} cannot be opened: {error}") from error
        except SafetensorError as error:
            raise SimoError(
                f"{path} is not a readable safetensors file ({error}); it may have been cut short: write, copy or "
                "download it again"
            ) from error
        weakref.finalize(self, os.close, self._descriptor)
        self._begins = _begins(self._descriptor)

    def names(self) -> list[str]:
        """The tensors' names, in the order of their bytes."""
        return self._names

    def stored(self, name: str) -> Stored:
        """Type and shape, from the header."""
        entry = self._file.get_slice(name)
        return Stored(_dtype(entry.get_dtype(), self.path), tuple(entry.get_shape()))

    def map(self, name: str) -> Tensor:
        """The tensor, over the mapped file."""
        return cast(Tensor, self._file.get_tensor(name))

    def read(self, name: str, memory: Memory, span: slice | None = None) -> Tensor:
        """The tensor, read: to map pages costs more than to copy what is in them."""
        stored, begin = self.stored(name), self._begins[name]
        shape = stored.shape
        if span is not None:
            shape, begin = (span.stop - span.start,), begin + span.start * stored.dtype.itemsize
        tensor = memory.tensor(shape, stored.dtype)
        if tensor.numel():
            content = memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's stubs
            self._read_at(content, begin)
        return tensor

    def _read_at(self, content: memoryview, offset: int) -> None:
        while content:
            count = os.preadv(self._descriptor, [content], offset)
            if count == 0:
                raise SimoError(f"{self.path} became shorter while it was read; write or copy it again")
            content, offset = content[count:], offset + count


class PickleFile:
    """A pickle that holds only tensors and plain values, such as `torch.save(model.state_dict(), path)` writes.

    Raises:
        SimoError: it holds code, is damaged, or holds no tensors.
    """

    def __init__(self, path: Path) -> None:
        self._tensors = unpickled(path, mapped=True)

    def names(self) -> list[str]:
        """The tensors' names, in the order of the state dict."""
        return list(self._tensors)

    def stored(self, name: str) -> Stored:
        """Type and shape."""
        return stored_in(self._tensors, name)

    def map(self, name: str) -> Tensor:
        """The tensor, over the mapped file where torch can map it."""
        return self._tensors[name].detach()

    def read(self, name: str, memory: Memory, span: slice | None = None) -> Tensor:
        """The same: torch does not say where in the file it lies."""
        return self.map(name) if span is None else self.map(name).reshape(-1)[span]


def _begins(descriptor: int) -> dict[str, int]:
    """Where in a valid safetensors file each tensor begins."""
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    header = json.loads(os.pread(descriptor, length, 8))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _dtype(name: str, path: Path) -> torch.dtype:
    if name not in DTYPES:
        raise SimoError(f"{path} holds tensors of type {name}, which cannot be merged; known: {', '.join(DTYPES)}")
    return DTYPES[name]
