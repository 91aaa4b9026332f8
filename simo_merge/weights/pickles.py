"""Pickles of tensors, read without running anything that they contain."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simo_merge.errors import SimoError

PICKLES = (".pth", ".pt", ".bin")
# Where training scripts put the weights beside optimiser and epoch; the first one present is taken.
WRAPPERS = ("model", "state_dict", "teacher", "model_ema")


def unpickled(path: Path, mapped: bool = False) -> dict[str, Tensor]:
    """The tensors of a pickle that holds only tensors and plain values.

    Args:
        path: the file.
        mapped: over the mapped file where torch can map it, which then must stay as it is while they are in use.

    Raises:
        SimoError: it holds code, is damaged or cut short, or holds no tensors.
    """
    try:
        content = _load(path, mapped)
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


def _load(path: Path, mapped: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except RuntimeError as error:
        if not mapped or "mmap" not in str(error):  # files older than torch 1.6 cannot be mapped, and are small
            raise
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    first = str(error).partition("\n")[0]
    known = isinstance(error, RuntimeError | EOFError | OSError | ValueError)  # others tell of the reader's inside
    return first if known and first else "its content is no pickle"
