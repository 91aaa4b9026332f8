"""Training in one process: the plain loop, bit for bit, and options that save memory without changing the result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from simo_merge.data import Augmentation, collate
from simo_merge.errors import SimoError
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel, build_decoder
from simo_merge.training import JointConfig, TrainConfig, joint, weighting_named
from simo_merge.training.batches import _Epochs, schedule
from simo_merge.training.distillation import Distillation
from simo_merge.training.trainer import Trainer
from tests.named import TAPS, named_base
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData, state_of, tiny_base
from tests.training.same_training import difference

DPT = {"intermediate_channels": (4, 6), "fusion_channels": 4}  # with dropout and batch norm
CONFIG = TrainConfig("dpt", DPT, decoder_steps=3, steps=4, batch_size=4, precision="float32", encoder_lr=1e-3)
TASKS = (SEGMENTATION, DEPTH, NORMALS)
NAMES = [task.name for task in TASKS]
SLOW = ("dwa", "gradnorm", "graddrop", "cagrad", "famo")
WEIGHTINGS = ["equal", "uncertainty", "auto-lambda", "pcgrad", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]
# FAMO learns from how much one step lowers the losses: 5e-6 at a cycle's first, small rate, where the rounding of a
# loss is 2e-7; so this rate is large enough that improvements stand 500 times above rounding.
FAST = 3e-2


def fresh(config: TrainConfig) -> SingleTaskModel:
    encoder = Encoder(tiny_base().vit, "tiny", (1, 3))
    torch.manual_seed(config.seed)
    return SingleTaskModel(encoder, build_decoder(config.decoder, encoder, 1, **config.decoder_options), DEPTH)


def plain(data: TinyData, config: TrainConfig) -> SingleTaskModel:
    """The loop written out; a clip as large as the test's changes nothing."""
    model = fresh(config)
    read = _Epochs(data, Augmentation.named(config.augment, data.tasks), config.seed)
    steps = schedule(len(data), config.batch_size, config.decoder_steps + config.steps, config.seed)
    done = 0
    for trains_encoder, count in ((False, config.decoder_steps), (True, config.steps)):
        groups: list[dict[str, Any]] = [{"params": list(model.decoder.parameters()), "lr": config.decoder_lr}]
        if trains_encoder:
            groups.append({"params": list(model.encoder.parameters()), "lr": config.encoder_lr})
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        rates, share = [group["lr"] for group in groups], max(config.warmup, 2 / (count + 1))
        cycle = OneCycleLR(optimizer, rates, total_steps=count + 1, pct_start=share, cycle_momentum=False)
        for items in steps[done : done + count]:
            done += 1
            batch = collate([read(item) for item in items])
            model.train()
            model.encoder.train(trains_encoder)
            torch.manual_seed(config.seed * 1_000_003 + done)
            with torch.set_grad_enabled(trains_encoder):
                taps = model.encoder(batch.images)
            loss = DEPTH.loss(model.decode(taps, (32, 48)), batch.targets["depth"], batch.masks["depth"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
    return model


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def trained(folder: Path, data: TinyData, config: TrainConfig) -> SingleTaskModel:
    model = fresh(config)
    Trainer(model, data, config, folder).run()
    return model


def test_training_is_the_plain_loop_bit_for_bit(tmp_path: Path) -> None:
    data, config = TinyData(6, (DEPTH,)), replace(CONFIG, clip=1e9)
    assert state_of(trained(tmp_path, data, config)) == state_of(plain(data, config))


# -- the recipe -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, r"must be 1 or more and divide batch_size 8, got 0"),
        ({"accumulate": 3}, r"accumulate cuts the batch into equal micro-batches: .* batch_size 8, got 3"),
    ],
)
def test_a_batch_is_cut_into_equal_micro_batches_only(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        TrainConfig(**options)


# -- micro-batches ----------------------------------------------------------------------------------------------


def fix_batch_norms(model: SingleTaskModel | MultiTaskModel) -> None:
    """Make the decoders' batch norms take nothing from a batch: of micro-batches they would see other statistics."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_pre_hook(lambda module, _: module.eval() and None)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_micro_batches_give_what_the_whole_batch_gives_dropout_included(tmp_path: Path, accumulate: int) -> None:
    data = TinyData(6, (DEPTH,))
    data.samples[0].masks["depth"][:] = False
    data.samples[1].masks["depth"][:16] = False
    found = []
    for number in (1, accumulate):
        config = replace(CONFIG, batch_size=6, accumulate=number)
        model = fresh(config)
        fix_batch_norms(model)
        Trainer(model, data, config, tmp_path / str(number)).run()
        found.append(model)
    assert difference(found[1].state_dict(), found[0].state_dict(), fresh(CONFIG).state_dict()) < 1e-3
    losses = [[entry["loss"] for entry in log(tmp_path / str(number))] for number in (1, accumulate)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_micro_batches_give_every_weighting_the_losses_of_the_whole_batch(tmp_path: Path, name: str) -> None:
    data = TinyData(6, TASKS)
    data.samples[0].masks["depth"][:] = False
    found, weights = [], []
    for number in (1, 2):
        torch.manual_seed(0)
        base = named_base()
        options = {"intermediate_channels": (4, 6, 8), "fusion_channels": 4}
        config = JointConfig(
            decoder_options=options, decoder_steps=1, steps=3, batch_size=4, precision="float32", accumulate=number,
            encoder_lr=1e-4, decoder_lr=FAST, weighting=weighting_named(name), distill=0.5,
        )  # fmt: skip
        model = joint._fresh(data, NAMES, config, base, TAPS)
        fix_batch_norms(model)
        teachers = {task: joint._fresh(data, [task], config, base, TAPS) for task in NAMES}
        distillation = Distillation(teachers, model.encoder, 0.5, 1e-2, "float32")
        folder = tmp_path / str(number)
        Trainer(model, data, config, folder, weighting=config.weighting, distillation=distillation).run()
        found.append(model)
        weights.append([[*e["weights"].values(), *e["losses"].values(), e.get("distillation", 0)] for e in log(folder)])
    assert weights[1] == [pytest.approx(entry, rel=2e-3, abs=1e-6) for entry in weights[0]]
    torch.manual_seed(0)
    start = joint._fresh(data, NAMES, config, named_base(), TAPS)
    assert difference(found[1].state_dict(), found[0].state_dict(), start.state_dict()) < 0.02


def test_only_a_micro_batch_is_held_at_a_time(tmp_path: Path) -> None:
    """What autograd keeps of the forward passes, at most: it must not grow with the number of micro-batches."""
    held: dict[int, int] = {}
    for size, number in ((4, 1), (4, 4)):
        sizes: list[int] = []
        data = TinyData(6, TASKS)
        torch.manual_seed(0)
        base = named_base()
        config = JointConfig("linear", {}, decoder_steps=0, steps=1, batch_size=size, accumulate=number)
        config = replace(config, weighting=weighting_named("uncertainty"), precision="float32")
        model = joint._fresh(data, NAMES, config, base, TAPS)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=sizes: seen.append(t.numel()) or t, lambda t: t):
            Trainer(model, data, config, tmp_path / str(number), weighting=config.weighting).run()
        held[number] = sum(sizes)
    assert held[4] < 0.5 * held[1]


def test_running_statistics_are_taken_up_once_however_often_a_micro_batch_is_run(tmp_path: Path) -> None:
    data = TinyData(6, TASKS)
    torch.manual_seed(0)
    options = {"intermediate_channels": (4, 6, 8), "fusion_channels": 4, "tap_norm": True}
    config = JointConfig("dpt", options, decoder_steps=1, steps=2, batch_size=4, precision="float32", accumulate=2)
    config = replace(config, weighting=weighting_named("famo"))
    model = joint._fresh(data, NAMES, config, named_base(), TAPS)
    Trainer(model, data, config, tmp_path, weighting=config.weighting).run()
    assert {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {2 * 3}


# -- checkpointing and compilation ------------------------------------------------------------------------------


def test_checkpointing_changes_no_bit_and_is_off_afterwards(tmp_path: Path) -> None:
    data = TinyData(6, (DEPTH,))
    plain_one = trained(tmp_path / "a", data, CONFIG)
    calls = []
    model = fresh(CONFIG)
    for block in model.encoder.vit.blocks:
        block.register_forward_pre_hook(lambda module, *_: calls.append(module))
    Trainer(model, data, replace(CONFIG, checkpointing=True), tmp_path / "b").run()
    assert state_of(model) == state_of(plain_one)
    assert len(calls) == 4 * (3 + 2 * 4)  # once on the frozen encoder, twice where it is trained
    assert not model.encoder.vit.grad_checkpointing


@pytest.mark.parametrize("name", ["auto-lambda", "pcgrad"])
def test_checkpointed_blocks_serve_every_task_s_gradient(tmp_path: Path, name: str) -> None:
    data, found = TinyData(6, TASKS), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = JointConfig(
            "linear", {}, decoder_steps=1, steps=3, batch_size=2, precision="float32", checkpointing=checkpointing
        )
        config = replace(config, weighting=weighting_named(name))
        model = joint._fresh(data, NAMES, config, named_base(), TAPS)
        Trainer(model, data, config, tmp_path / str(checkpointing), weighting=config.weighting).run()
        found.append(model)
    assert state_of(found[0]) == state_of(found[1])


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_up_to_rounding_and_is_compiled_no_more_afterwards(tmp_path: Path) -> None:
    data = TinyData(6, (DEPTH,))
    first = trained(tmp_path / "a", data, CONFIG)
    compiled = trained(tmp_path / "b", data, replace(CONFIG, compile=True))
    assert difference(compiled.state_dict(), first.state_dict(), fresh(CONFIG).state_dict()) < 0.02
    assert compiled.encoder._compiled_call_impl is None
    losses = [[entry["loss"] for entry in log(tmp_path / name)] for name in "ab"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
