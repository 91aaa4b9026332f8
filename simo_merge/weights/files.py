"""Reading tensors from a local file, without running anything that the file contains."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from simo_merge.errors import SimoError

PICKLES = (".pth", ".pt", ".bin")
# Where training scripts put the weights beside optimiser and epoch; the first one present is taken.
WRAPPERS = ("model", "state_dict", "teacher", "model_ema")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from `.safetensors`, or from a pickle that holds only tensors and plain values.

    Returns:
        Floating-point tensors as float32, by name; other tensors unchanged.

    Raises:
        SimoError: the file is missing, damaged, of another kind, or holds code, quantised weights or values that are
            not finite.
    """
    if not path.is_file():
        raise SimoError(f"No weights file at {path}. Pass the path of a .safetensors, .pth, .pt or .bin file.")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in PICKLES:
        tensors = _read_pickle(path)
    else:
        raise SimoError(f"{path.name} ends in {path.suffix!r}; expected .safetensors, {', '.join(PICKLES)}.")
    quantised = [name for name, value in tensors.items() if value.is_floating_point() and value.dtype.itemsize == 1]
    if quantised:
        raise SimoError(
            f"{path.name} holds weights quantised to 8 bits ({first(quantised)}), which are numbers only with their "
            "scales. Save it in bfloat16 or float32 with the program that quantised it."
        )
    floats = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    refuse_non_finite(floats, path.name)
    return floats


def refuse_non_finite(tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Refuse weights with NaN or infinity: they would spoil every merge they enter, without a word.

    Raises:
        SimoError: naming a few of the tensors.
    """
    bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise SimoError(
            f"{origin} holds NaN or infinity in {first(bad)}. Weights must be finite: the file is damaged, "
            "or the training that wrote it diverged."
        )


def first(names: list[str], shown: int = 3) -> str:
    """A few of the names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise SimoError(
            f"{path.name} is not a readable safetensors file ({error}). It may have been cut short: copy or "
            "download it again."
        ) from error


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SimoError(
            f"{path.name} holds more than tensors and plain values, or is damaged; it was not opened: "
            "that could run its code. Save its state dict alone (safetensors.torch.save_file), pass that."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise SimoError(
            f"{path.name} is not a readable torch file ({str(error).partition(chr(10))[0] or 'empty'}). It "
            "may have been cut short: copy or download it again."
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise SimoError(f"{path.name} holds a {type(content).__name__}; expected a mapping of names to tensors.")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise SimoError(f"{path.name} holds no tensors; expected a mapping of names to tensors.")
    return tensors
