"""Checkpoints merged without holding their models: byte for byte the checkpoint of the merge in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from simo_merge.checkpoints import load, load_expert, save
from simo_merge.errors import SimoError
from simo_merge.merging import (
    DataMergeMethod,
    MergeMethod,
    Parameter,
    TaskArithmetic,
    TaskSpecificMethod,
    WeightAverage,
    merge,
)
from simo_merge.merging.files.merge_checkpoints import load_base_from, merge_checkpoints
from simo_merge.merging.method import MergeData
from simo_merge.models import BaseRecord, Encoder, MultiTaskModel, SingleTaskModel, build_decoder
from simo_merge.tasks import Depth, Normals, Task
from simo_merge.weights import Base, load_base


@dataclass(frozen=True)
class Own(TaskSpecificMethod):
    name: ClassVar[str] = "own"

    def merge(self, parameter: Parameter, statistics: Any) -> Tensor:
        return parameter.base + parameter.vectors.mean(0)

    def merge_for_tasks(self, parameter: Parameter, statistics: Any) -> Tensor:
        return torch.stack(parameter.experts) * 0.5


class Learns(DataMergeMethod):
    name = "learns"

    def observe(self, given: MergeData) -> Any:
        raise AssertionError

    def merge(self, parameter: Parameter, statistics: Any) -> Tensor:
        raise AssertionError


@pytest.fixture
def base() -> Base:
    return load_base("test_vit", "random")


def expert_of(task: Task, base: Base, seed: int) -> SingleTaskModel:
    torch.manual_seed(seed)
    vit = load_base("test_vit", "random").vit
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    encoder = Encoder(vit, base.name)
    record = BaseRecord(base.name, base.source, base.sha256)
    decoder = build_decoder("linear", encoder, task.out_channels)
    decoder.get_buffer("norm.num_batches_tracked").fill_(seed)
    return SingleTaskModel(encoder, decoder, task, record, {"recipe": {"seed": seed}}).eval()


@pytest.fixture
def paths(base: Base, tmp_path: Path) -> list[Path]:
    return [save(expert_of(t, base, i + 1), tmp_path / t.name) for i, t in enumerate((Depth(), Normals()))]


@pytest.mark.parametrize("method", [TaskArithmetic(0.4), WeightAverage(), Own()])
def test_the_checkpoint_is_that_of_the_merge_in_memory(paths: list[Path], tmp_path: Path, method: MergeMethod) -> None:
    save(merge([load_expert(path) for path in paths], method), tmp_path / "memory")
    merge_checkpoints(paths, method, tmp_path / "streamed")
    files = sorted(file.name for file in (tmp_path / "memory").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "streamed").iterdir())
    for name in files:
        assert (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes(), name
        assert (tmp_path / "streamed" / name).stat().st_mode == (tmp_path / "memory" / name).stat().st_mode
    loaded = load(tmp_path / "streamed")
    assert isinstance(loaded, MultiTaskModel)
    assert loaded.encoder_passes == (2 if isinstance(method, Own) else 1)


def test_experts_stored_in_half_precision_give_the_same_too(paths: list[Path], tmp_path: Path) -> None:
    file = paths[0] / "model.safetensors"
    exact = {n: t.half().float() if t.is_floating_point() else t for n, t in load_file(file).items()}
    expert = load_expert(paths[0])
    expert.load_state_dict(exact)
    save(expert, paths[0], overwrite=True)
    save_file({n: t.half() if t.is_floating_point() else t for n, t in exact.items()}, file)
    save(merge([load_expert(path) for path in paths], WeightAverage()), tmp_path / "memory")
    merge_checkpoints(paths, WeightAverage(), tmp_path / "streamed")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes(), name


def test_the_base_may_be_given_as_weights_or_as_a_source(paths: list[Path], base: Base, tmp_path: Path) -> None:
    merge_checkpoints(paths, TaskArithmetic(), tmp_path / "a", base)
    merge_checkpoints(paths, TaskArithmetic(), tmp_path / "b", load_base_from("random"))
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()


def test_what_does_not_belong_together_is_refused_and_nothing_written(
    paths: list[Path], base: Base, tmp_path: Path
) -> None:
    def said(*experts: Path, method: MergeMethod | None = None) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SimoError) as refusal:
            merge_checkpoints(experts, method or TaskArithmetic(), tmp_path / "out")
        assert sorted(tmp_path.rglob("*")) == before
        return str(refusal.value)

    assert "at least two experts, got 1" in said(paths[0])
    assert "same task: depth" in said(paths[0], paths[0])
    assert "learns learns from images" in said(*paths, method=Learns())
    stranger = expert_of(Normals(), base, 7)
    stranger.base = BaseRecord("test_vit", "random", "0" * 64)
    save(stranger, tmp_path / "stranger")
    assert "different bases" in said(paths[0], tmp_path / "stranger")
    file = paths[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    assert str(file) in said(*paths)
