"""The state of an unfinished run: one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = "state.safetensors"


@dataclass(frozen=True)
class RunState:
    """A run after `step` steps, which took `seconds`: tensors of model and optimiser, state of the scheduler."""

    step: int
    seconds: float
    tensors: dict[str, Tensor]
    scheduler: dict[str, Any]


def save_state(
    folder: Path,
    step: int,
    seconds: float,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: dict[str, Any],
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a run's state; `scheduler` must hold plain JSON values, and `extra` names with a prefix of their own."""
    tensors = with_prefix("model", {k: v.contiguous() for k, v in model.state_dict().items()})
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{slot}": value for slot, value in slots.items()}
    tensors |= {name: value.clone() for name, value in (extra or {}).items()}  # two of them may be one tensor
    meta = json.dumps({"step": step, "seconds": seconds, "scheduler": scheduler})
    temporary = folder / f".{FILE}.{os.getpid()}.tmp"
    save_file(tensors, temporary, metadata={"meta": meta})
    temporary.replace(folder / FILE)


def load_state(folder: Path) -> RunState | None:
    """The last state, or None where there is none."""
    file = folder / FILE
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as handle:
        meta = json.loads(handle.metadata()["meta"])
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  # no mapping
    return RunState(tensors=tensors, **meta)


def restore_model(tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Put the model's tensors of a state back."""
    model.load_state_dict(without_prefix("model", tensors))


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix/name`."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `with_prefix` put there."""
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def restore_optimizer(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Put the optimiser's tensors of a state back; it must have the same parameters in the same groups."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, slot = name.split("/")
            state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
