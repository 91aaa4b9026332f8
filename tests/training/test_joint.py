"""Joint training: the experts' own stages with a shared encoder, the same bits every time, and found again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from simo_merge.checkpoints import load, save
from simo_merge.data import Sample
from simo_merge.errors import SimoError
from simo_merge.evaluation import evaluate
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.training import (
    WEIGHTINGS,
    JointConfig,
    TrainConfig,
    experts,
    joint,
    train_expert,
    train_joint,
    weighting_named,
)
from simo_merge.training.joint_config import joint_recipe
from simo_merge.training.trainer import Trainer
from simo_merge.training.weighting import Dwa, Equal, PcGrad
from simo_merge.weights import Base
from tests.named import TAPS, named_base
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData, state_of

TASKS = (SEGMENTATION, DEPTH, NORMALS)
NAMES = [task.name for task in TASKS]
DPT = {"intermediate_channels": (4, 6, 8), "fusion_channels": 4, "tap_norm": True}  # dropout, and running statistics
OPTIONS: dict[str, Any] = {
    "decoder": "dpt",
    "decoder_options": DPT,
    "decoder_steps": 2,
    "steps": 3,
    "batch_size": 2,
    "precision": "float32",
    "encoder_lr": 1e-3,
}
CONFIG = JointConfig(**OPTIONS)


class Interrupted(BaseException):
    """Ends a run as a kill does."""


class Interrupting(TinyData):
    """Six images of three tasks; the run that asks for one more than `allowed` is interrupted."""

    allowed = 10**9

    def __getitem__(self, index: int) -> Sample:
        if self.allowed == 0:
            raise Interrupted
        self.allowed -= 1
        return super().__getitem__(index)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIMO_MERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "joint"


@pytest.fixture
def base() -> Base:
    torch.manual_seed(0)
    return named_base()


@pytest.fixture
def data() -> TinyData:
    return TinyData(6, TASKS)


@pytest.fixture
def train(base: Base, data: TinyData) -> Callable[..., MultiTaskModel]:
    def run(tasks: list[str] | None = None, config: JointConfig = CONFIG, **options: Any) -> MultiTaskModel:
        given = {"dataset": data, "base": base, "taps": TAPS, "device": "cpu"} | options
        return train_joint(tasks=NAMES if tasks is None else tasks, config=config, **given)

    return run


@pytest.fixture
def expert(base: Base, data: TinyData) -> Callable[..., SingleTaskModel]:
    config = TrainConfig(**OPTIONS)
    return partial(train_expert, data, config=config, base=base, taps=TAPS, device="cpu")


def log(model: MultiTaskModel) -> list[dict[str, Any]]:
    text = (Path(model.provenance["path"]) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def untimed(model: MultiTaskModel) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in log(model)]


# -- the same loop as an expert's -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "precision"), [("segmentation", "float32"), ("depth", "bfloat16"), ("normals", "float32")]
)
def test_one_task_with_equal_weights_is_single_task_training_bit_for_bit(
    train: Callable[..., MultiTaskModel], expert: Callable[..., SingleTaskModel], task: str, precision: str
) -> None:
    options = OPTIONS | {"precision": precision, "clip": 0.5}  # a clip that bites
    alone = expert(task, config=TrainConfig(**options))
    together = train([task], JointConfig(**options))
    assert state_of(together.encoder) == state_of(alone.encoder)
    assert state_of(together.decoders[task]) == state_of(alone.decoder)


def test_the_first_stage_gives_every_decoder_what_its_expert_s_gave_it(
    train: Callable[..., MultiTaskModel], expert: Callable[..., SingleTaskModel], base: Base
) -> None:
    options = OPTIONS | {"steps": 0, "decoder_steps": 3, "clip": 0.5}
    together = train(config=JointConfig(**options, weighting=weighting_named("rlw")))
    assert state_of(together.encoder.vit) == state_of(base.vit)
    for task in NAMES:
        alone = expert(task, config=TrainConfig(**options))
        assert state_of(together.decoders[task]) == state_of(alone.decoder), task


def test_the_second_stage_is_the_sum_of_the_losses(
    train: Callable[..., MultiTaskModel], data: TinyData, base: Base
) -> None:
    """One step of plain SGD's place: the first AdamW step written out, from losses that are added by hand."""
    options = OPTIONS | {"steps": 1, "decoder_steps": 0, "augment": "none", "decoder": "linear", "decoder_options": {}}
    config = JointConfig(**options, clip=1e9, weight_decay=0.0)
    together = train(config=config)
    fresh = joint._fresh(data, NAMES, config, base, TAPS).train()
    images, names = [data.keys.index(key) for key in _first_batch(data, config)], NAMES
    batch = torch.stack([data[index].image for index in images])
    taps = fresh.encoder(batch)
    total = torch.zeros(())
    for name in names:
        target = torch.stack([data[index].targets[name] for index in images])
        mask = torch.stack([data[index].masks[name] for index in images])
        total = total + fresh.tasks[name].loss(fresh.decode(taps, name, (32, 48)), target, mask)
    total.backward()
    rates = log(together)[0]["lr"]
    for part, rate in ((fresh.decoders, rates[0]), (fresh.encoder, rates[1])):
        trained = dict((together.decoders if part is fresh.decoders else together.encoder).named_parameters())
        for name, parameter in part.named_parameters():
            if parameter.grad is not None:
                step = rate * parameter.grad / (parameter.grad.abs() + 1e-8)  # Adam's first
                torch.testing.assert_close(trained[name], parameter - step, rtol=1e-4, atol=2e-5)
    assert log(together)[0]["loss"] == pytest.approx(total.item())


def _first_batch(data: TinyData, config: TrainConfig) -> tuple[str, ...]:
    from simo_merge.training.batches import training_batches

    return next(training_batches(data, None, config.batch_size, 1, config.seed)).keys


def test_decoders_begin_as_the_experts_do_whatever_comes_before_them(
    base: Base, data: TinyData, expert: Callable[..., SingleTaskModel]
) -> None:
    fresh = joint._fresh(data, NAMES, CONFIG, base, TAPS)
    reversed_ = joint._fresh(data, NAMES[::-1], CONFIG, base, TAPS)
    for task in NAMES:
        alone = experts._fresh(data, task, TrainConfig(**OPTIONS), base, fresh.base, TAPS)
        assert state_of(fresh.decoders[task]) == state_of(alone.decoder) == state_of(reversed_.decoders[task])


# -- what comes out ---------------------------------------------------------------------------------------------


def test_a_model_comes_ready_to_use_and_says_how_it_was_made(
    train: Callable[..., MultiTaskModel], cache: Path, base: Base, tmp_path: Path
) -> None:
    validation = TinyData(2, TASKS, seed=5)
    model = train(config=replace(CONFIG, weighting=Dwa(temperature=3.0)), validation=validation)
    (folder,) = cache.iterdir()
    assert not model.training
    assert list(model.tasks) == NAMES
    assert model.encoder_passes == 1
    assert model.base.sha256 == base.sha256
    made = model.provenance
    assert made["path"] == str(folder)
    assert made["recipe"]["weighting"] == {"name": "dwa", "temperature": 3.0}
    assert made["image_size"] == [32, 48]
    assert made["train_seconds"] > 0
    assert set(made["step_seconds"]) == {"decoder", "encoder and decoder"}
    total = 2 * made["step_seconds"]["decoder"] + 3 * made["step_seconds"]["encoder and decoder"]
    assert total == pytest.approx(made["train_seconds"], abs=0.1)
    assert made["peak_memory"] > 10**7
    assert (model.merge.method, model.merge.parameters) == ("joint-dwa", {"temperature": 3.0})
    save(model, tmp_path / "saved")
    assert state_of(load(tmp_path / "saved")) == state_of(model)
    assert load(tmp_path / "saved").provenance["recipe_hash"] == folder.name
    assert "trained by | joint-dwa (temperature = 3.0)" in (tmp_path / "saved" / "README.md").read_text()
    row = evaluate(model, validation)
    assert (row.method, row.labels, row.images, row.encoder_passes) == ("joint-dwa", 6, 6, 1)


def test_the_log_tells_losses_weights_and_validation_of_every_task(train: Callable[..., MultiTaskModel]) -> None:
    model = train(config=replace(CONFIG, weighting=weighting_named("rlw")), validation=TinyData(2, TASKS, seed=5))
    entries = log(model)
    assert [entry["step"] for entry in entries] == [1, 2, 2, 3, 4, 5, 5]
    assert set(entries[-1]["validation"]) == set(NAMES)
    for entry in entries:
        if "loss" in entry:
            assert entry["loss"] == pytest.approx(sum(entry["losses"][name] for name in NAMES))
            assert sum(entry["weights"].values()) == pytest.approx(3.0)
    assert entries[0]["weights"] == dict.fromkeys(NAMES, 1.0)  # nothing is shared in the first stage
    assert entries[3]["weights"] != entries[4]["weights"]


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_trains_the_encoder_and_leaves_what_no_decoder_reads(
    train: Callable[..., MultiTaskModel], name: str, base: Base
) -> None:
    options = OPTIONS | {"decoder": "linear", "decoder_options": {}, "decoder_steps": 0, "steps": 2}
    config = JointConfig(**options, weighting=weighting_named(name))
    model = train(config=config, taps=(1, 3))
    before = dict(base.vit.named_parameters())
    for key, parameter in model.encoder.vit.named_parameters():
        read = key.startswith(("blocks.0", "blocks.1", "blocks.2", "blocks.3", "patch_embed"))
        if read and "bias" not in key:
            assert not torch.equal(parameter, before[key]), key
        elif key.startswith(("blocks.4", "blocks.5", "norm")):
            assert torch.equal(parameter, before[key]), key


@pytest.mark.parametrize("name", ["famo", "auto-lambda"])
def test_further_forward_passes_leave_no_trace_in_running_statistics(
    train: Callable[..., MultiTaskModel], name: str
) -> None:
    model = train(config=replace(CONFIG, weighting=weighting_named(name)))
    counts = [m.num_batches_tracked.item() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert set(counts) == {5}


def test_joint_training_makes_the_predictions_of_all_tasks_better(
    train: Callable[..., MultiTaskModel], data: TinyData
) -> None:
    for sample in data.samples:
        sample.targets["depth"] = 2 + sample.image[:1]
        sample.targets["segmentation"] = (sample.image[0] > 2).long()
    options = OPTIONS | {
        "decoder": "linear",
        "decoder_options": {},
        "augment": "none",
        "decoder_lr": 1e-2,
        "batch_size": 6,
    }
    model = train(["segmentation", "depth"], JointConfig(**options | {"decoder_steps": 6, "steps": 14}))
    losses = [entry["losses"] for entry in log(model)]
    assert all(losses[-1][task] < 0.7 * losses[0][task] for task in ("segmentation", "depth"))


# -- the cache, and interruptions -------------------------------------------------------------------------------


def test_a_recipe_is_trained_once(
    train: Callable[..., MultiTaskModel], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train()
    monkeypatch.setattr(Trainer, "run", lambda _: pytest.fail("it was trained again"))
    assert state_of(train()) == state_of(first)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("uncertainty", {}),
        ("dwa", {}),
        ("rlw", {}),
        ("gradnorm", {}),
        ("famo", {}),
        ("auto-lambda", {}),
        ("pcgrad", {}),
        ("nash-mtl", {"every": 3}),
    ],
)
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(
    base: Base, data: TinyData, tmp_path: Path, name: str, own: dict[str, Any]
) -> None:
    """Every weighting that remembers something, or draws something."""
    options = OPTIONS | {"decoder": "linear", "decoder_options": {}, "steps": 7}
    config = JointConfig(**options, weighting=weighting_named(name, own))

    def trained(folder: Path, dataset: TinyData, save_every: float = 60.0) -> MultiTaskModel:
        model = joint._fresh(data, NAMES, config, base, TAPS)
        Trainer(model, dataset, config, folder, save_every=save_every, weighting=config.weighting).run()
        return model

    whole = trained(tmp_path / "whole", data)
    cut = Interrupting(6, TASKS)
    cut.allowed = 2 * (14 if name == "auto-lambda" else 8)  # it reads a second batch in each step
    with pytest.raises(Interrupted):
        trained(tmp_path / "cut", cut, save_every=0.0)
    done = len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines())
    assert 2 + 4 <= done < 9  # far enough in the second stage for a memory of two epochs
    assert state_of(trained(tmp_path / "cut", data)) == state_of(whole)


KILLED = """
import os, signal, sys
import simo_merge
import torch
from functools import partial
from dataclasses import replace
from simo_merge.training import joint, weighting_named
from tests.named import TAPS, named_base
from tests.tiny import TinyData
from tests.training.test_joint import CONFIG, NAMES, TASKS

class Deadly(joint.Trainer):
    def _step(self, stage, batch, optimizer, step, *rest):
        if step == 4:  # the second of stage two
            os.kill(os.getpid(), signal.SIGKILL)
        super()._step(stage, batch, optimizer, step, *rest)

torch.manual_seed(0)
torch.set_num_threads(int(sys.argv[1]))
joint.Trainer = partial(Deadly, save_every=0.0)
config = replace(CONFIG, weighting=weighting_named("uncertainty"))
joint.train_joint(TinyData(6, TASKS), NAMES, config, named_base(), TAPS, device="cpu")
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_in_another_process_and_ends_with_the_same_bits(
    train: Callable[..., MultiTaskModel], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(torch.get_num_threads())]
    died = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    assert died.returncode == -signal.SIGKILL
    assert [path.suffix for path in cache.iterdir()] == [".unfinished"]
    config = replace(CONFIG, weighting=weighting_named("uncertainty"))
    resumed = train(config=config)
    monkeypatch.setenv("SIMO_MERGE_CACHE", str(tmp_path / "whole"))
    whole = train(config=config)
    assert state_of(resumed) == state_of(whole)
    assert untimed(resumed) == untimed(whole)


# -- recipes ----------------------------------------------------------------------------------------------------


def test_every_option_changes_the_recipe_but_those_that_are_not_used(data: TinyData, base: Base) -> None:
    other: dict[str, Any] = {
        "weighting": PcGrad(),
        "distill": 0.5,
        "seed": 1,
        "augment": "none",
        "batch_size": 3,
    }
    assert {field.name for field in fields(JointConfig)} >= set(other)
    model = joint._fresh(data, NAMES, CONFIG, base, TAPS)
    teachers = dict.fromkeys(NAMES, "0" * 64)

    def recipe(config: JointConfig, names: list[str] = NAMES) -> str:
        chosen = joint._fresh(data, names, CONFIG, base, TAPS) if names != NAMES else model
        return json.dumps(joint_recipe(data, chosen, config, teachers if config.distill else {}))

    found = [recipe(CONFIG), recipe(CONFIG, NAMES[:2]), recipe(CONFIG, NAMES[::-1])]
    found += [recipe(replace(CONFIG, **{name: value})) for name, value in other.items()]
    found += [recipe(replace(CONFIG, weighting=Dwa(temperature=t))) for t in (2.0, 3.0)]
    assert len(set(found)) == len(found)
    assert recipe(replace(CONFIG, adapter_lr=0.5)) == recipe(CONFIG)
    assert recipe(replace(CONFIG, adapter_lr=0.5, distill=1.0)) != recipe(replace(CONFIG, distill=1.0))


# -- what cannot be trained -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "dwa"}, "weighting must be a Weighting, got 'dwa'; weighting_named makes one by name"),
        ({"distill": -1.0}, "distill must be 0 or more, got -1.0"),
        ({"adapter_lr": 0.0}, "adapter_lr must be positive, got 0.0"),
        ({"batch_size": 0}, "batch_size must be positive"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        JointConfig(**options)


def test_tasks_and_data_that_do_not_suit_are_refused(train: Callable[..., MultiTaskModel], cache: Path) -> None:
    for options, message in (
        ({"tasks": []}, r"tasks are \[\]; name one or more, each once"),
        ({"tasks": ["depth", "depth"]}, "name one or more, each once"),
        ({"tasks": ["depth", "edges"]}, r"no labels for task\(s\) edges; its tasks: segmentation, depth, normals"),
        ({"dataset": TinyData(0, TASKS)}, "has no images to train on"),
        ({"validation": TinyData(2, (), seed=5)}, "the model predicts .* has labels for nothing"),
        ({"config": replace(CONFIG, weighting=Equal(), decoder_options={"fusion": 1})}, "options of decoder 'dpt'"),
    ):
        with pytest.raises(SimoError, match=message):
            train(**options)
    assert not cache.exists()


def test_a_run_that_diverges_names_its_tasks(train: Callable[..., MultiTaskModel]) -> None:
    with pytest.raises(SimoError, match=r"the loss of segmentation \+ depth \+ normals became .* lower encoder_lr"):
        train(config=replace(CONFIG, decoder_lr=1e30, encoder_lr=1e30))
