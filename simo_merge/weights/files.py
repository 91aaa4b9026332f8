"""Reading tensors from a local file, without running anything that the file contains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from simo_merge.errors import SimoError
from simo_merge.weights.pickles import PICKLES, unpickled


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
        tensors = unpickled(path)
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
