"""States of a small ViT and its experts as files, and methods that files are merged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from simo_merge.merging import (
    MERGE_METHODS,
    DataMergeMethod,
    MergeMethod,
    Parameter,
    TaskSpecificMethod,
)
from simo_merge.merging.parameter import Parameters
from tests.tiny import tiny_base

State = dict[str, Tensor]
FILE_METHODS = sorted(name for name, kind in MERGE_METHODS.items() if not issubclass(kind, DataMergeMethod))


def vit_states(count: int = 3, shift: float = 0.02, dtype: torch.dtype = torch.float32) -> list[State]:
    """A base and fine-tuned experts in timm's names, with an integer buffer."""
    base = {name: tensor.to(dtype) for name, tensor in tiny_base().vit.state_dict().items()}
    states = [base | {"steps": torch.tensor(3)}]
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        moved = {n: (t.float() + shift * torch.randn(t.shape, generator=generator)).to(dtype) for n, t in base.items()}
        states.append(moved | {"steps": torch.tensor(3)})
    return states


def saved(folder: Path, states: list[State]) -> list[Path]:
    paths = [folder / f"{name}.safetensors" for name in ("base", "seg", "depth", "normals", "more")[: len(states)]]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path)
    return paths


def identical(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(
        found[n].dtype == expected[n].dtype and torch.equal(found[n], expected[n]) for n in expected
    )


@dataclass(frozen=True)
class Centred(MergeMethod):
    """Needs a pass, and draws from what the pass gives: the mean magnitude of everything."""

    name: ClassVar[str] = "centred"

    def statistics(self, parameters: Parameters) -> float:
        total = 0.0
        for parameter in parameters():
            total += float(parameter.vectors.abs().sum())
        return total

    def merge(self, parameter: Parameter, statistics: float) -> Tensor:
        return parameter.base + parameter.vectors.mean(0) * (statistics / (1 + statistics))


@dataclass(frozen=True)
class Own(TaskSpecificMethod):
    name: ClassVar[str] = "own"

    def merge(self, parameter: Parameter, statistics: Any) -> Tensor:
        return parameter.base

    def merge_for_tasks(self, parameter: Parameter, statistics: Any) -> Tensor:
        return torch.stack(parameter.experts)
