"""Training: two stages, the same weights for the same seed, and no trace of an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.models import Encoder, SingleTaskModel, build_decoder
from simo_merge.scoring import score
from simo_merge.training import AUGMENTATIONS, TrainConfig
from simo_merge.training.trainer import Trainer
from tests.tiny import DEPTH, NORMALS, TinyData, state_of, tiny_base

DPT = {"intermediate_channels": (4, 6), "fusion_channels": 4}  # with dropout, unlike the linear head
CONFIG = TrainConfig("dpt", DPT, decoder_steps=3, steps=4, batch_size=2, precision="float32", encoder_lr=1e-3)


def fresh(config: TrainConfig = CONFIG) -> SingleTaskModel:
    encoder = Encoder(tiny_base().vit, "tiny", (1, 3))
    torch.manual_seed(config.seed)
    return SingleTaskModel(encoder, build_decoder(config.decoder, encoder, 1, **config.decoder_options), DEPTH)


def trained(folder: Path, data: TinyData, config: TrainConfig = CONFIG, **options: Any) -> SingleTaskModel:
    model = fresh(config)
    Trainer(model, data, config, folder, **options).run()
    return model


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in log(folder)]


# -- two stages -------------------------------------------------------------------------------------------------


def test_the_first_stage_trains_the_decoder_alone(data: TinyData, tmp_path: Path) -> None:
    before = fresh()
    model = trained(tmp_path, data, replace(CONFIG, steps=0))
    assert state_of(model.encoder) == state_of(before.encoder)
    assert state_of(model.decoder) != state_of(before.decoder)


def test_the_second_stage_trains_encoder_and_decoder(data: TinyData, tmp_path: Path) -> None:
    before = fresh()
    model = trained(tmp_path, data, replace(CONFIG, decoder_steps=0))
    for name, parameter in model.encoder.vit.blocks.named_parameters():
        assert not torch.equal(parameter, before.encoder.vit.blocks.get_parameter(name)), name
    assert state_of(model.decoder) != state_of(before.decoder)


def test_a_frozen_encoder_runs_in_evaluation_mode_and_without_gradient(data: TinyData, tmp_path: Path) -> None:
    model, seen = fresh(), []
    model.encoder.register_forward_hook(
        lambda module, _, taps: seen.append((module.training, taps.maps[0].requires_grad))
    )
    Trainer(model, data, CONFIG, tmp_path).run()
    assert seen == [(False, False)] * 3 + [(True, True)] * 4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_makes_the_predictions_better(data: TinyData, tmp_path: Path, precision: str) -> None:
    for sample in data.samples:
        sample.targets["depth"] = 2 + sample.image[:1]
    config = replace(CONFIG, decoder="linear", decoder_options={}, decoder_steps=10, steps=20, precision=precision)
    config = replace(config, decoder_lr=3e-2, augment="none")
    before = score(fresh(config), data)["depth"]["abs"]
    assert score(trained(tmp_path, data, config), data)["depth"]["abs"] < 0.7 * before


def test_each_augmentation_trains_other_weights(data: TinyData, tmp_path: Path) -> None:
    found = {state_of(trained(tmp_path / name, data, replace(CONFIG, augment=name))) for name in AUGMENTATIONS}
    assert len(found) == len(AUGMENTATIONS)


@pytest.mark.parametrize("steps", [1, 2, 19, 39])
def test_any_number_of_steps_has_a_schedule(data: TinyData, tmp_path: Path, steps: int) -> None:
    trained(tmp_path, data, replace(CONFIG, decoder_steps=steps, steps=0, decoder="linear", decoder_options={}))
    rates = [entry["lr"][0] for entry in log(tmp_path)]
    assert len(rates) == steps
    assert max(rates) == pytest.approx(CONFIG.decoder_lr if steps > 1 else CONFIG.decoder_lr / 25)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


# -- the same every time ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(data: TinyData, tmp_path: Path) -> None:
    first = trained(tmp_path / "a", data)
    torch.rand(5)
    assert state_of(trained(tmp_path / "b", data)) == state_of(first)
    assert state_of(trained(tmp_path / "c", data, replace(CONFIG, seed=1))) != state_of(first)


def test_validation_and_loader_processes_do_not_change_the_weights(data: TinyData, tmp_path: Path) -> None:
    first = trained(tmp_path / "a", data)
    validation = TinyData(2, (DEPTH,), seed=5)
    assert state_of(trained(tmp_path / "b", data, validation=validation, workers=1)) == state_of(first)


# -- the log ----------------------------------------------------------------------------------------------------


def test_the_log_has_every_step_once_and_the_validation_of_each_stage(data: TinyData, tmp_path: Path) -> None:
    model = trained(tmp_path, data, validation=TinyData(2, (DEPTH,), seed=5))
    entries = log(tmp_path)
    assert [(entry["step"], "validation" in entry) for entry in entries] == [
        *((step, False) for step in (1, 2, 3)),
        (3, True),
        *((step, False) for step in (4, 5, 6, 7)),
        (7, True),
    ]
    assert [len(entry["lr"]) for entry in entries if "lr" in entry] == [1, 1, 1, 2, 2, 2, 2]
    assert {entry["stage"] for entry in entries} == {"decoder", "encoder and decoder"}
    seconds = [entry["seconds"] for entry in entries if "seconds" in entry]
    assert seconds == sorted(seconds)
    assert entries[-1]["validation"] == score(model, TinyData(2, (DEPTH,), seed=5))["depth"]


# -- interruptions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save_every", [0.0, 3600.0], ids=["a state every step", "a state every stage"])
@pytest.mark.parametrize("done", range(7))
def test_a_run_interrupted_after_any_step_ends_with_the_same_weights_and_log(
    data: TinyData,
    interrupting: Callable[[int], TinyData],
    interrupted: type[BaseException],
    tmp_path: Path,
    done: int,
    save_every: float,
) -> None:
    validation = TinyData(2, (DEPTH,), seed=5)
    whole = trained(tmp_path / "whole", data, validation=validation)
    with pytest.raises(interrupted):
        trained(tmp_path / "cut", interrupting(2 * done), validation=validation, save_every=save_every)
    assert len([entry for entry in log_or_none(tmp_path / "cut") if "loss" in entry]) == done
    resumed = trained(tmp_path / "cut", data, validation=validation)
    assert state_of(resumed) == state_of(whole)
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")


def log_or_none(folder: Path) -> list[dict[str, Any]]:
    return log(folder) if (folder / "metrics.jsonl").is_file() else []


def test_a_run_that_was_finished_gives_its_weights_and_not_those_it_began_with(data: TinyData, tmp_path: Path) -> None:
    whole = trained(tmp_path, data)
    again = trained(tmp_path, data)
    assert state_of(again) == state_of(whole)
    assert len(log(tmp_path)) == 7


def test_only_the_steps_that_are_left_are_made(
    data: TinyData, interrupting: Callable[[int], TinyData], interrupted: type[BaseException], tmp_path: Path
) -> None:
    with pytest.raises(interrupted):
        trained(tmp_path, interrupting(2 * 5), save_every=0.0)
    trained(tmp_path, interrupting(2 * 2))  # just enough for steps 6 and 7


def test_a_line_of_the_log_that_was_cut_off_is_forgotten(
    data: TinyData, interrupting: Callable[[int], TinyData], interrupted: type[BaseException], tmp_path: Path
) -> None:
    with pytest.raises(interrupted):
        trained(tmp_path, interrupting(2 * 5), save_every=0.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "los')
    trained(tmp_path, data)
    assert [entry["step"] for entry in log(tmp_path)] == list(range(1, 8))


def test_the_time_of_the_interrupted_run_counts(
    data: TinyData, interrupting: Callable[[int], TinyData], interrupted: type[BaseException], tmp_path: Path
) -> None:
    with pytest.raises(interrupted):
        trained(tmp_path, interrupting(2 * 6), save_every=0.0)
    before = log(tmp_path)[-1]["seconds"]
    trained(tmp_path, data)
    assert log(tmp_path)[-1]["seconds"] > before > 0


# -- training that diverges -------------------------------------------------------------------------------------


def test_a_loss_of_nan_ends_the_run(data: TinyData, tmp_path: Path) -> None:
    for sample in data.samples:
        sample.targets["depth"][0, 3, 3] = torch.nan
        sample.masks["depth"][3, 3] = True
    model = fresh()
    with pytest.raises(SimoError, match=r"the loss of depth became nan at step 1.* lower encoder_lr and decoder_lr"):
        Trainer(model, data, replace(CONFIG, augment="none"), tmp_path).run()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_learning_rate_that_is_far_too_large_ends_the_run(data: TinyData, tmp_path: Path) -> None:
    with pytest.raises(SimoError, match="the loss of depth became"):
        trained(tmp_path, data, replace(CONFIG, decoder_lr=1e30))


def test_a_gradient_of_nan_never_reaches_the_weights(data: TinyData, tmp_path: Path) -> None:
    model = fresh()
    next(model.decoder.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(SimoError, match=r"the loss of depth became \d.* at step 1, its gradient nan"):
        Trainer(model, data, CONFIG, tmp_path).run()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_batch_without_a_valid_label_teaches_nothing_and_does_no_harm(tmp_path: Path) -> None:
    data = TinyData(2, (DEPTH, NORMALS))
    for sample in data.samples:
        sample.masks["depth"][:] = False
    model = trained(tmp_path, data)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert {entry["loss"] for entry in log(tmp_path)} == {0.0}
