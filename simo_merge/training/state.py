"""The state of an unfinished run: one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = "state.safetensors"


def save_state(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, meta: dict[str, Any]
) -> None:
    """Write model, optimiser and `meta` (plain JSON values) after `step` steps."""
    tensors: dict[str, Tensor] = {f"model/{k}": v.contiguous() for k, v in model.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{slot}": value for slot, value in slots.items()}
    temporary = folder / f".{FILE}.{os.getpid()}.tmp"
    save_file(tensors, temporary, metadata={"meta": json.dumps({"step": step, **meta})})
    temporary.replace(folder / FILE)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and the meta values of the last state, or None where there is none."""
    file = folder / FILE
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as handle:
        meta = json.loads(handle.metadata()["meta"])
        return {name: handle.get_tensor(name) for name in handle.keys()}, meta  # noqa: SIM118  # no mapping


def restore(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Put a loaded state back into the model and, where given, into an optimiser of the same parameters."""
    model.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    if optimizer is None:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, slot = name.split("/")
            state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
