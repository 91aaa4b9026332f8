"""Where tensors live and in which precision a forward pass runs."""

from __future__ import annotations

import resource
import sys

import torch

from simo_merge.distributed import local_rank, world_size
from simo_merge.errors import SimoError

PRECISIONS = ("float32", "bfloat16")
"""What a forward pass can run in."""
AUTO = "auto"
"""Stands for the faster of them on a device: `resolve_precision`."""


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The named device; without a name, CUDA where there is one, else the CPU.

    Of several processes on a machine each takes a GPU of its own, as long as there are enough; "cuda" means that one.

    Raises:
        SimoError: a device that this machine or this build of torch does not have.
    """
    if device is None:
        return _own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise SimoError(f"unknown device {str(device)!r}; expected cpu, cuda or cuda:N") from error
    if resolved.type == "cuda":
        seen = torch.cuda.device_count()
        if (resolved.index or 0) >= seen:
            what = f"GPUs 0 to {seen - 1}" if seen else "no CUDA GPU; use cpu"
            raise SimoError(f"device {str(device)!r} was asked for, but this torch sees {what}")
        if resolved == torch.device("cuda"):  # no number
            return _own_gpu()
    return resolved


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision: "float32" switches it off, "bfloat16" on, "auto" takes the faster one.

    Raises:
        SimoError: another precision.
    """
    enabled = resolve_precision(precision, device) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision that is meant on a device: "auto" is bfloat16 where the hardware computes it, else float32.

    A CPU without instructions for bfloat16 emulates it, more than ten times slower than float32.

    Raises:
        SimoError: neither "auto" nor one of `PRECISIONS`.
    """
    if precision == AUTO:
        return "bfloat16" if _computes_bfloat16(device) else "float32"
    if precision not in PRECISIONS:
        raise SimoError(f"unknown precision {precision!r}; known: {', '.join((AUTO, *PRECISIONS))}")
    return precision


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: allocated on a GPU since its counter was reset, or resident in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # Linux counts kilobytes


def _own_gpu() -> torch.device:
    if world_size() == 1:
        return torch.device("cuda")
    own = torch.device("cuda", local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(own)  # else whatever says no more than "cuda" goes to the first
    return own


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 cannot tell
        return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False
