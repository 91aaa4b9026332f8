"""Training by several processes: what one process gives, up to rounding, and the same bits on all of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simo_merge.distributed import rank
from simo_merge.errors import SimoError
from simo_merge.models import RunningNorm2d
from simo_merge.training import JointConfig, TrainConfig, joint, train_expert, weighting_named
from simo_merge.training.distillation import Distillation
from simo_merge.training.shared_layers import SharedLayers
from simo_merge.training.trainer import Trainer
from tests.named import TAPS, named_base
from tests.processes import share_work
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData, state_of
from tests.training.same_training import difference

TASKS = (SEGMENTATION, DEPTH, NORMALS)
NAMES = [task.name for task in TASKS]
DPT = {"intermediate_channels": (4, 6, 8), "fusion_channels": 4, "tap_norm": True}  # dropout, both kinds of batch norm
CONFIG = JointConfig(
    "dpt", DPT, decoder_steps=2, steps=4, batch_size=4, precision="float32", encoder_lr=1e-4, decoder_lr=3e-4
)


def uneven() -> TinyData:
    """Labels of some tasks are missing where others have theirs, so that parts count differently."""
    data = TinyData(6, TASKS)
    for index, (task, rows) in enumerate([("depth", 32), ("depth", 20), ("segmentation", 32), ("normals", 25)]):
        data.samples[index].masks[task][:rows] = False
    return data


def trained(folder: Path, config: JointConfig, distils: bool = False) -> dict[str, Any]:
    """A joint run on all processes that there are: its log, and the weights and the weighting's memory of this one."""
    torch.manual_seed(0)
    base = named_base()
    model = joint._fresh(uneven(), NAMES, config, base, TAPS)
    distillation = None
    if distils:
        experts = {task: joint._fresh(uneven(), [task], config, named_base(), TAPS) for task in NAMES}
        distillation = Distillation(experts, model.encoder, 0.5, 1e-3, "float32")
    validation = TinyData(5, TASKS, seed=5)
    trainer = Trainer(
        model, uneven(), config, folder, validation, weighting=config.weighting, distillation=distillation
    )
    trainer.run()
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8") if rank() == 0 else ""
    return {
        "log": [json.loads(line) for line in text.splitlines()],
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "memory": trainer.weighting_state,
        "bits": state_of(model),
    }


def compare(first: dict[str, Any], others: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """All processes have the same bits; they are those of one process up to rounding."""
    for other in others:
        assert other["bits"] == first["bits"]
        assert all(torch.equal(other["memory"][name], value) for name, value in first["memory"].items())
    assert len(first["log"]) == len(one["log"]) == 8
    for ours, theirs in zip(first["log"], one["log"], strict=True):
        assert flat(ours) == pytest.approx(flat(theirs), rel=1e-3, abs=1e-5)
    torch.manual_seed(0)
    start = joint._fresh(uneven(), NAMES, CONFIG, named_base(), TAPS).state_dict()
    assert difference(first["state"], one["state"], start) < 0.02
    for name, value in one["memory"].items():
        torch.testing.assert_close(first["memory"][name], value, rtol=1e-3, atol=1e-4)


def flat(entry: dict[str, Any]) -> list[float]:
    """The numbers of a line of the log but the time."""
    found: list[float] = []
    for name, value in sorted(entry.items()):
        if isinstance(value, dict):
            found += flat(value)
        elif isinstance(value, float) and name != "seconds":
            found.append(value)
    return found


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    first, second = share_work(trained, tmp_path / "two", CONFIG)
    compare(first, [second], trained(tmp_path / "one", CONFIG))
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["metrics.jsonl", "state.safetensors"]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("uncertainty", {}),
        ("dwa", {}),
        ("rlw", {}),
        ("gls", {}),
        ("si", {}),
        ("gradnorm", {}),
        ("gradnorm", {"layer": "encoder"}),
        ("famo", {}),
        ("auto-lambda", {}),
        ("cagrad", {}),
        ("mgda", {}),
        ("upgrad", {}),
        ("nash-mtl", {"every": 2}),
        ("pcgrad", {}),
        ("imtl-g", {}),
        ("aligned-mtl", {}),
        ("graddrop", {}),
    ],
)
def test_every_weighting_sees_the_whole_batch_on_every_process(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    config = replace(CONFIG, weighting=weighting_named(name, options))
    first, second = share_work(trained, tmp_path / "two", config, True)
    compare(first, [second], trained(tmp_path / "one", config, True))


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", ["equal", "gradnorm", "auto-lambda", "pcgrad"])
def test_processes_and_micro_batches_together_are_micro_batches_of_one(tmp_path: Path, name: str) -> None:
    config = replace(CONFIG, batch_size=8, weighting=weighting_named(name), accumulate=2, checkpointing=True)
    config = replace(
        config, encoder_lr=1e-6, decoder_lr=3e-6
    )  # further on, weights of opposed gradients are all rounding
    first, second = share_work(trained, tmp_path / "two", config, True)
    compare(first, [second], trained(tmp_path / "one", config, True))


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """Its first stage by two, its second by one; and the other way round."""
    start = replace(CONFIG, steps=0)
    share_work(trained, tmp_path / "two", start)
    trained(tmp_path / "one", start)
    one = trained(tmp_path / "two", CONFIG)
    first, second = share_work(trained, tmp_path / "one", CONFIG)
    compare(first, [second], one)
    compare(one, [], trained(tmp_path / "alone", CONFIG))


# -- an expert --------------------------------------------------------------------------------------------------


def expert(cache: Path, batch_size: int, seed: int) -> dict[str, Any]:
    import os

    os.environ["SIMO_MERGE_CACHE"] = str(cache)
    torch.manual_seed(seed)
    config = TrainConfig("linear", {}, decoder_steps=2, steps=2, batch_size=batch_size, precision="float32")
    found = train_expert(uneven(), "depth", config, named_base(), TAPS, device="cpu")
    return {**found.provenance, "bits": state_of(found)}


@pytest.mark.slow
@pytest.mark.processes
def test_an_expert_is_written_once_says_who_trained_it_and_has_the_name_that_one_process_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMO_MERGE_CACHE", str(tmp_path))
    first, second = share_work(expert, tmp_path, 4, 0)
    assert first["processes"] == 2
    assert first == second
    assert [path.name for path in (tmp_path / "experts").iterdir()] == [first["recipe_hash"]]
    alone = expert(tmp_path, 4, 0)
    assert alone["bits"] == first["bits"], "it is in the cache"


@pytest.mark.slow
@pytest.mark.processes
def test_what_processes_cannot_share_is_refused_by_all(tmp_path: Path) -> None:
    for error in share_work(expert, tmp_path, 5, 0):
        assert isinstance(error, SimoError)
        assert "batch_size is 5, images of a step over all processes" in str(error)


def differing(folder: Path) -> None:
    torch.manual_seed(rank())
    Trainer(joint._fresh(uneven(), NAMES, CONFIG, named_base(), TAPS), uneven(), CONFIG, folder).run()


@pytest.mark.slow
@pytest.mark.processes
def test_processes_that_begin_with_other_weights_are_refused(tmp_path: Path) -> None:
    for error in share_work(differing, tmp_path / "run"):
        assert isinstance(error, SimoError)
        assert "of process 1 is not that of process 0; start all of them with the same command" in str(error)
    assert not (tmp_path / "run").exists()


# -- batch norm -------------------------------------------------------------------------------------------------


def normed(kind: str, whole: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Three steps of a batch norm, on this process's rows of a batch: outputs, gradients, running statistics."""
    torch.manual_seed(0)
    norm = {"momentum": nn.BatchNorm2d(5), "mean": nn.BatchNorm2d(5, momentum=None), "running": RunningNorm2d(5)}[kind]
    nn.init.normal_(norm.weight)
    from simo_merge.distributed import share

    rows = share(whole.shape[1])
    layers, found = SharedLayers(), {}
    with layers.installed(norm):
        for step, batch in enumerate(whole):
            x = batch[list(rows)].clone().requires_grad_()
            y = norm(x)
            (y * weight[list(rows)]).square().sum().backward()
            found |= {f"y{step}": y.detach(), f"dx{step}": x.grad}
    found |= {"dw": norm.weight.grad, "db": norm.bias.grad, "mean": norm.running_mean, "var": norm.running_var}
    return found


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("kind", ["momentum", "mean", "running"])
def test_batch_norm_over_processes_is_torch_s_of_the_whole_batch(kind: str) -> None:
    whole = 3 + 2 * torch.randn(3, 5, 5, 4, 3)  # five images: three and two
    weight = torch.randn(5, 5, 4, 3)
    one = normed(kind, whole, weight)
    first, second = share_work(normed, kind, whole, weight)
    for name, value in one.items():
        if name[0] == "y" or name.startswith("dx"):
            ours = torch.cat([first[name], second[name]])
        elif name in ("mean", "var"):
            assert torch.equal(first[name], second[name])
            ours = first[name]
        else:
            ours = first[name] + second[name]
        torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
