"""Experts by recipe: trained once, found again, and never half a one."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from simo_merge.checkpoints import load_expert
from simo_merge.device import resolve_precision
from simo_merge.errors import SimoError
from simo_merge.tasks import Depth
from simo_merge.training import TrainConfig, experts, train_expert
from simo_merge.training.trainer import Trainer
from simo_merge.weights import Base
from tests.named import NAME, TAPS, named_base
from tests.tiny import DEPTH, NORMALS, TinyData, state_of

DPT = {"intermediate_channels": (4, 6, 8), "fusion_channels": 4}
CONFIG = TrainConfig("dpt", DPT, decoder_steps=2, steps=3, batch_size=2, precision="float32", encoder_lr=1e-3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIMO_MERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "experts"


@pytest.fixture
def base() -> Base:
    torch.manual_seed(0)
    return named_base()


@pytest.fixture
def train(base: Base) -> Callable[..., object]:
    return partial(train_expert, task="depth", config=CONFIG, base=base, taps=TAPS, device="cpu")


def test_an_expert_comes_ready_to_use_and_says_how_it_was_made(
    train: Callable[..., object], data: TinyData, base: Base, cache: Path
) -> None:
    expert = train(data, validation=TinyData(2, (DEPTH,), seed=5))
    (folder,) = cache.iterdir()
    assert expert.task == DEPTH
    assert not expert.training
    assert expert.encoder.name == NAME
    assert expert.encoder.taps == TAPS
    assert (expert.base.name, expert.base.source, expert.base.sha256) == (base.name, base.source, base.sha256)
    assert expert.decoder.config["fusion_channels"] == 4
    provenance = expert.provenance
    assert provenance["path"] == str(folder)
    assert provenance["recipe_hash"] == folder.name
    assert provenance["recipe"]["training"]["steps"] == 3
    assert provenance["image_size"] == [32, 48]
    assert provenance["train_seconds"] > 0
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2, 3, 4, 5, 5]
    assert state_of(load_expert(folder)) == state_of(expert)


def test_a_recipe_is_trained_once(
    train: Callable[..., object], data: TinyData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(data)
    monkeypatch.setattr(Trainer, "run", lambda _: pytest.fail("it was trained again"))
    assert state_of(train(data)) == state_of(first)
    assert len(list(cache.iterdir())) == 1


def test_another_recipe_is_another_expert(train: Callable[..., object], data: TinyData, cache: Path) -> None:
    first = train(data)
    other = train(data, config=replace(CONFIG, seed=1))
    assert state_of(other) != state_of(first)
    assert len(list(cache.iterdir())) == 2


def test_the_same_recipe_gives_the_same_expert_in_another_place(
    train: Callable[..., object], data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(data)
    monkeypatch.setenv("SIMO_MERGE_CACHE", str(tmp_path / "elsewhere"))
    assert state_of(train(data)) == state_of(first)


def test_the_base_that_is_given_stays_as_it_is(train: Callable[..., object], data: TinyData, base: Base) -> None:
    before = state_of(base.vit)
    expert = train(data)
    assert state_of(base.vit) == before
    assert state_of(expert.encoder.vit) != before
    assert base.vit.training is False


# -- interruptions ----------------------------------------------------------------------------------------------


def test_a_run_killed_before_its_expert_was_written_does_not_train_again(
    train: Callable[..., object],
    data: TinyData,
    interrupted: type[BaseException],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*_: object) -> None:
        raise interrupted

    with monkeypatch.context() as patch:
        patch.setattr(experts, "save", killed)
        with pytest.raises(interrupted):
            train(data)
    assert [path.suffix for path in cache.iterdir()] == [".unfinished"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", lambda *_: pytest.fail("it was trained again"))
        expert = train(data)
    monkeypatch.setenv("SIMO_MERGE_CACHE", str(tmp_path / "whole"))
    assert state_of(expert) == state_of(train(data))


KILLED = """
import os, signal, sys
import simo_merge
import torch
from functools import partial
from simo_merge.training import experts
from tests.named import TAPS, named_base
from tests.tiny import DEPTH, TinyData
from tests.training.test_experts import CONFIG

class Deadly(experts.Trainer):
    def _step(self, stage, batch, optimizer, step, *rest):
        if step == 4:  # the second of stage two
            os.kill(os.getpid(), signal.SIGKILL)
        super()._step(stage, batch, optimizer, step, *rest)

torch.manual_seed(0)
torch.set_num_threads(int(sys.argv[1]))
experts.Trainer = partial(Deadly, save_every=0.0)
experts.train_expert(TinyData(6, (DEPTH,)), "depth", CONFIG, named_base(), TAPS, device="cpu")
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_in_another_process_and_ends_with_the_same_bits(
    train: Callable[..., object],
    data: TinyData,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(torch.get_num_threads())]
    died = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    assert died.returncode == -signal.SIGKILL
    assert [path.suffix for path in cache.iterdir()] == [".unfinished"]
    caplog.set_level(logging.INFO)
    resumed = train(data)
    assert "depth: going on after step 3" in caplog.messages
    monkeypatch.setenv("SIMO_MERGE_CACHE", str(tmp_path / "whole"))
    assert state_of(resumed) == state_of(train(data))
    lines = (Path(resumed.provenance["path"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]


# -- what cannot be trained -------------------------------------------------------------------------------------


def test_a_task_without_labels_is_refused(train: Callable[..., object], data: TinyData) -> None:
    with pytest.raises(SimoError, match=r"tiny \(val\) has no labels for task 'edges'; its tasks: depth"):
        train(data, task="edges")


def test_an_empty_data_set_is_refused(train: Callable[..., object]) -> None:
    with pytest.raises(SimoError, match=r"tiny \(val\) has no images to train on"):
        train(TinyData(0, (DEPTH,)))


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (TinyData(2, (NORMALS,)), "the model predicts depth, but tiny .* has labels for normals"),
        (TinyData(0, (DEPTH,)), "has no images to evaluate on"),
        (TinyData(2, (Depth(unit="mm"),)), "unit 'm', tiny has 'mm'"),
    ],
)
def test_validation_data_that_do_not_suit_are_refused_before_training(
    train: Callable[..., object], data: TinyData, cache: Path, validation: TinyData, message: str
) -> None:
    with pytest.raises(SimoError, match=message):
        train(data, validation=validation)
    assert not cache.exists()


def test_options_of_the_decoder_that_do_not_fit_are_refused(train: Callable[..., object], data: TinyData) -> None:
    with pytest.raises(SimoError, match="2 intermediate_channels for 3 taps"):
        train(data, config=replace(CONFIG, decoder_options={"intermediate_channels": (4, 6)}))


def test_a_damaged_expert_in_the_cache_is_named_and_not_used(
    train: Callable[..., object], data: TinyData, cache: Path
) -> None:
    train(data)
    (folder,) = cache.iterdir()
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(SimoError, match=rf"{folder.name}.*model\.safetensors is damaged"):
        train(data)


def test_the_recipe_says_which_precision_auto_was(train: Callable[..., object], data: TinyData) -> None:
    expert = train(data, config=replace(CONFIG, precision="auto"))
    expected = resolve_precision("auto", torch.device("cpu"))
    assert expert.provenance["recipe"]["training"]["precision"] == expected
