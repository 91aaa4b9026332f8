"""One file of tensors, read tensor by tensor: safetensors, or a pickle that holds nothing but tensors."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.stored import DTYPES, Stored, stored_in

PICKLES = (".pth", ".pt", ".bin")
# Where training scripts put the weights beside optimiser and epoch; the first one present is taken.
WRAPPERS = ("model", "state_dict", "teacher", "model_ema")


class TensorFile(Protocol):
    """One file of tensors."""

    def names(self) -> list[str]:
        """The tensors' names, in the file's order."""
        ...

    def stored(self, name: str) -> Stored:
        """Type and shape, without reading the values."""
        ...

    def read(self, name: str) -> Tensor:
        """The tensor."""
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
        except (SafetensorError, OSError) as error:
            raise SimoError(
                f"{path} is not a readable safetensors file ({error}); it may have been cut short: write, copy or "
                "download it again"
            ) from error

    def names(self) -> list[str]:
        """The tensors' names, in the order of their bytes."""
        return self._names

    def stored(self, name: str) -> Stored:
        """Type and shape, from the header."""
        entry = self._file.get_slice(name)
        return Stored(_dtype(entry.get_dtype(), self.path), tuple(entry.get_shape()))

    def read(self, name: str) -> Tensor:
        """The tensor, over the mapped file."""
        return cast(Tensor, self._file.get_tensor(name))


class PickleFile:
    """A pickle that holds only tensors and plain values, such as `torch.save(model.state_dict(), path)` writes.

    Raises:
        SimoError: it holds code, is damaged, or holds no tensors.
    """

    def __init__(self, path: Path) -> None:
        self._tensors = _unpickled(path)

    def names(self) -> list[str]:
        """The tensors' names, in the order of the state dict."""
        return list(self._tensors)

    def stored(self, name: str) -> Stored:
        """Type and shape."""
        return stored_in(self._tensors, name)

    def read(self, name: str) -> Tensor:
        """The tensor, over the mapped file where torch can map it."""
        return self._tensors[name].detach()


def _unpickled(path: Path) -> dict[str, Tensor]:
    try:
        content = _mapped_or_read(lambda mapped: torch.load(path, map_location="cpu", weights_only=True, mmap=mapped))
    except pickle.UnpicklingError as error:
        raise SimoError(
            f"{path} holds more than tensors and plain values, or is damaged; it was not opened, because that could "
            "run its code. Save its state dict alone (safetensors.torch.save_file) and give that"
        ) from error
    except Exception as error:  # bytes that are no pickle make its reader fail in any way
        raise SimoError(
            f"{path} is not a readable torch file ({_reason(error)}); it may have been "
            "cut short: copy or download it again"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise SimoError(f"{path} holds a {type(content).__name__}; expected a mapping of names to tensors")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise SimoError(f"{path} holds no tensors; expected a mapping of names to tensors")
    return tensors


def _reason(error: Exception) -> str:
    first = str(error).partition("\n")[0]
    known = isinstance(error, RuntimeError | EOFError | OSError | ValueError)  # others tell of the reader's inside
    return first if known and first else "its content is no pickle"


def _mapped_or_read(load: Callable[[bool], Any]) -> Any:
    try:
        return load(True)
    except RuntimeError as error:
        if "mmap" not in str(error):  # files older than torch 1.6 cannot be mapped, and are small
            raise
        return load(False)


def _dtype(name: str, path: Path) -> torch.dtype:
    if name not in DTYPES:
        raise SimoError(f"{path} holds tensors of type {name}, which cannot be merged; known: {', '.join(DTYPES)}")
    return DTYPES[name]
