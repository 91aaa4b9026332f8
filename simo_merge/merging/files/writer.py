"""Writing safetensors tensor by tensor: the header first, because names, types and shapes are known beforehand."""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.stored import DTYPES, Stored, stored_as

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class SafetensorsWriter:
    """A `.safetensors` file that appears when all of its tensors are written.

    Byte for byte what `safetensors.torch.save_file` writes. Tensors may come in any order and from several threads;
    no values are held back, so memory is what the caller holds. The file is written under a temporary name beside
    `path`; it is flushed to the disk and renamed when the block ends well, and deleted when it does not.

    Args:
        path: the file.
        tensors: type and shape of every tensor.
        metadata: plain text for the header.

    Raises:
        SimoError: a type that safetensors does not have.
    """

    def __init__(
        self, path: str | Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path = Path(path)
        self._tensors = dict(tensors)
        self._temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.tmp")
        self._header, self._offsets = _header(self._tensors, metadata or {"format": "pt"})
        self._left = {name: math.prod(stored.shape) for name, stored in self._tensors.items()}
        self._written: dict[str, list[tuple[int, int]]] = {}
        self._lock = Lock()
        self._file = -1

    def __enter__(self) -> Self:
        self._file = os.open(self._temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
        try:
            os.ftruncate(self._file, len(self._header) + sum(stored.nbytes for stored in self._tensors.values()))
            _write_at(self._file, memoryview(self._header), 0)
        except BaseException:  # a full disk, say: a block that does not begin is not left either
            self.discard()
            raise
        return self

    def write(self, name: str, tensor: Tensor, start: int = 0) -> None:
        """Write one tensor, or a piece of it, flattened; it is converted to the type that was announced.

        Args:
            name: the tensor's.
            tensor: of the announced shape; or (n,), a piece.
            start: where in the flattened tensor a piece begins.

        Raises:
            ValueError: an unannounced name, a shape other than announced, or values written before.
            SimoError: values that the announced type cannot hold.
        """
        self._expect(name, tensor, start)
        stored = self._tensors[name]
        values = stored_as(tensor, stored.dtype, name).contiguous()
        if values.numel():
            content = memoryview(values.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's stubs
            _write_at(self._file, content, self._offsets[name] + start * stored.dtype.itemsize)

    def _expect(self, name: str, tensor: Tensor, start: int) -> None:
        """Cross off what is about to be written."""
        stored, shape, count = self._tensors.get(name), tuple(tensor.shape), tensor.numel()
        with self._lock:
            spans = self._written.setdefault(name, [])
            size = 0 if stored is None else math.prod(stored.shape)
            is_whole = stored is not None and shape == stored.shape and start == 0
            is_piece = stored is not None and len(shape) == 1 and 0 < count < size and 0 <= start <= size - count
            overlaps = any(begin < start + count and start < end for begin, end in spans)
            if not (is_whole or is_piece) or overlaps or name not in self._left:
                raise ValueError(f"{name} of shape {shape} at {start} is not (or no longer) to be written: {stored}")
            spans.append((start, start + count))
            self._left[name] -= count
            if not self._left[name]:
                del self._left[name]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.complete()
                self.appear()
        finally:
            self.discard()

    def complete(self) -> None:
        """Bring all that was written to the disk, under the temporary name still.

        Raises:
            ValueError: a tensor was never written.
        """
        if self._left:
            raise ValueError(f"{self.path}: never written: {', '.join(sorted(self._left)[:5])}")
        os.fsync(self._file)
        self._close()

    def appear(self) -> None:
        """Give the complete file its name."""
        self._temporary.replace(self.path)

    def discard(self) -> None:
        """Leave no temporary file behind; one that has its name stays."""
        self._close()
        self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)


class ShardedWriter:
    """Shards of at most `shard_size` bytes in a directory, and their index `model.safetensors.index.json`.

    Shards get their names when all are complete, the index last. A tensor larger than that has a shard of its own; what
    fits in one file is one file, `model.safetensors`, without index. The names are those of the Hugging Face Hub.

    Raises:
        SimoError: as `SafetensorsWriter`.
    """

    def __init__(
        self,
        directory: str | Path,
        tensors: Mapping[str, Stored],
        shard_size: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = Path(directory)
        shards = _split(tensors, shard_size)
        count = len(shards)
        names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        if count == 1:
            names = ["model.safetensors"]
        self._shards = [
            SafetensorsWriter(self.directory / name, {t: tensors[t] for t in inside}, metadata)
            for name, inside in zip(names, shards, strict=True)
        ]
        self._place = {t: shard for shard, inside in zip(self._shards, shards, strict=True) for t in inside}
        self._bytes = sum(stored.nbytes for stored in tensors.values())

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for shard in self._shards:
                stack.enter_context(shard)
            stack.pop_all()  # they end together, when this block does
        return self

    def write(self, name: str, tensor: Tensor, start: int = 0) -> None:
        """Write one tensor, or a piece of it, as `SafetensorsWriter.write`."""
        self._place[name].write(name, tensor, start)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        index = self.directory / "model.safetensors.index.json"
        temporary = index.with_name(f".{index.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            if kind is None:
                for shard in self._shards:
                    shard.complete()
                if len(self._shards) > 1:
                    temporary.write_text(self._index(), encoding="utf-8")
                for shard in self._shards:
                    shard.appear()
                if len(self._shards) > 1:
                    temporary.replace(index)
        finally:
            temporary.unlink(missing_ok=True)
            for shard in self._shards:
                shard.discard()

    def _index(self) -> str:
        places = {name: self._place[name].path.name for name in sorted(self._place)}
        return json.dumps({"metadata": {"total_size": self._bytes}, "weight_map": places}, indent=2) + "\n"


def parse_bytes(text: str | int) -> int:
    """Bytes from a number or a text like `500MB`, `5GB` or `2GiB`.

    Raises:
        SimoError: no such size, or less than one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if match is None or match[2].upper() not in _UNITS:
        raise SimoError(f"{text!r} is no size; write a number of bytes, or one like 500MB, 5GB or 2GiB")
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size < 1:
        raise SimoError(f"a shard must hold 1 byte or more, got {text!r}")
    return size


def _header(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The header with its length in front, and where in the file each tensor begins.

    Wider types come first, as safetensors orders them, so that every tensor is aligned.
    """
    unknown = sorted({str(stored.dtype) for stored in tensors.values() if stored.dtype not in _NAMES})
    if unknown:
        raise SimoError(f"safetensors cannot hold {', '.join(unknown)}; choose one of {', '.join(map(str, _NAMES))}")
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    begins: dict[str, int] = {}
    end = 0
    for name in sorted(tensors, key=lambda n: (-_RANK[tensors[n].dtype], n.encode())):
        stored = tensors[name]
        begins[name], end = end, end + stored.nbytes
        offsets = [begins[name], end]
        entries[name] = {"dtype": _NAMES[stored.dtype], "shape": list(stored.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + begin for name, begin in begins.items()}


def _split(tensors: Mapping[str, Stored], shard_size: int | None) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(tensors):
        size = tensors[name].nbytes
        if shard_size is not None and shards[-1] and filled + size > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_at(file: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
