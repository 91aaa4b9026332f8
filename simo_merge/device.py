"""Where tensors live and in which precision a forward pass runs."""

from __future__ import annotations

import torch

from simo_merge.errors import SimoError

PRECISIONS = ("float32", "bfloat16")


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The named device; without a name, CUDA where there is one, else the CPU.

    Raises:
        SimoError: a device that this machine or this build of torch does not have.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise SimoError(f"unknown device {str(device)!r}; expected cpu, cuda or cuda:N") from error
    if resolved.type == "cuda":
        seen = torch.cuda.device_count()
        if (resolved.index or 0) >= seen:
            what = f"GPUs 0 to {seen - 1}" if seen else "no CUDA GPU; use cpu"
            raise SimoError(f"device {str(device)!r} was asked for, but this torch sees {what}")
    return resolved


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision: "float32" switches it off, "bfloat16" on.

    Raises:
        SimoError: another precision.
    """
    if precision not in PRECISIONS:
        raise SimoError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
