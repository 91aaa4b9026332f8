"""The encoder trained towards all experts at once: its loss, what is kept, what an aligner then reads."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from simo_merge.data import Augmentation
from simo_merge.data.loading import load
from simo_merge.errors import SimoError
from simo_merge.merging import WeightAverage, merge
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign import EncoderDistillation, LinearSurgery, capture_all, realign
from simo_merge.realign.inside.distillation import MappedError
from simo_merge.realign.inside.teachers import AugmentedReader, Item, Teachers
from simo_merge.realign.realignment import Calibration
from simo_merge.realign.running import tokens_of
from tests.tiny import DEPTH, SEGMENTATION, TinyData, state_of, tiny_base, tiny_expert

FEW = EncoderDistillation(steps=36, lr=3e-4, batch_size=4, precision="float32", augment=None)


def enough() -> TinyData:
    """Images with more tokens than the maps have inputs: what is fitted to them holds on others."""
    return TinyData(24, size=(64, 96))


def record(model: MultiTaskModel) -> dict[str, Any]:
    assert model.merge is not None
    return dict(model.merge.alignment or {})


def test_the_best_look_is_kept_and_an_aligner_behind_it_comes_nearer_than_without(
    merged: MultiTaskModel, experts: list[SingleTaskModel]
) -> None:
    seen, unseen = enough(), TinyData(8, size=(64, 96), seed=7)
    trained = realign(merged, experts, seen, FEW)
    errors, kept = record(trained)["errors_held_out"], record(trained)["steps_kept"]
    assert len(errors) == 1 + 16
    looks = [0, 3, 5, 7, 9, 12, 14, 16, 18, 21, 23, 25, 27, 30, 32, 34, 36]
    assert errors[looks.index(kept)] == min(errors) < errors[0]
    assert record(trained)["trainable_parameters"] == sum(
        p.numel() for name, p in merged.encoder.named_parameters() if not name.startswith("vit.norm.")
    )
    assert not trained.aligners
    aligners = LinearSurgery(rank=None, stretch="none")
    with_it, without = (realign(model, experts, seen, aligners) for model in (trained, merged))
    assert record(with_it)["method"] == "encoder-distilled+surgery-closed-form"
    for expert in experts:
        ours, other = (unexplained(model, expert, unseen) for model in (with_it, without))
        assert ours < 0.95 * other


def unexplained(model: MultiTaskModel, expert: SingleTaskModel, images: TinyData) -> float:
    """Squared difference of all aligned patches to the expert's, each tap in units of the expert's deviation."""
    aligner, found = model.aligners[expert.task.name], 0.0
    with torch.inference_mode():
        for index in range(len(images)):
            batch = images[index].image[None]
            theirs = expert.encoder(batch).maps
            ours = aligner(model.encoder(batch)).maps
            found += sum(float(((a - b) / b.std()).square().mean()) for a, b in zip(ours, theirs, strict=True))
    return found


def test_the_loss_is_that_of_a_plain_version(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    images = TinyData(5)
    given = calibration(merged, experts, images)
    method = EncoderDistillation(weights={"segmentation": 3.0, "depth": 1.0}, prefix=2.0)
    loss = method._loss(copy.deepcopy(merged), given, 5)
    which = torch.tensor([3, 0])
    batch = torch.stack([images[int(i)].image for i in which])
    model = copy.deepcopy(merged).eval()
    with torch.inference_mode():
        plain = 0.0
        for name, weight in (("segmentation", 0.75), ("depth", 0.25)):
            expert = next(e for e in experts if e.task.name == name)
            ours = loss.maps[name](model.encoder(batch))
            theirs = expert.encoder(batch)
            everything = given.features.experts[name]
            errors = []
            for tap in range(len(ours.maps)):
                deviation = everything.patches[tap].double().flatten(0, 1).std(0, correction=0)
                scale = deviation.clamp_min(0.1 * deviation.median())
                patches = (ours.maps[tap] - theirs.maps[tap]).double().flatten(2).transpose(1, 2) / scale
                prefix = (ours.prefix[tap] - theirs.prefix[tap]).double() / scale
                weights = torch.cat([torch.full((prefix.shape[1],), 2.0), torch.ones(patches.shape[1])]).double()
                squares = torch.cat([prefix, patches], dim=1).square().mean(dim=(0, 2))
                errors.append((squares * weights).sum() / weights.sum())
            plain += weight * float(torch.stack(errors).mean())
        found = loss(model.encoder(batch), {e.task.name: tokens_of(e.encoder(batch)) for e in experts})
    torch.testing.assert_close(float(found), plain, rtol=1e-4, atol=0)


def test_maps_start_in_closed_form_without_the_images_that_are_held_out(
    merged: MultiTaskModel, experts: list[SingleTaskModel]
) -> None:
    images = TinyData(6)
    model = copy.deepcopy(merged)
    loss: MappedError = FEW._loss(model, calibration(merged, experts, images), 4)
    assert not model.aligners
    fitted = realign(merged, experts, TinyData(4), LinearSurgery(rank=None, stretch="none"))
    for task, maps in loss.maps.items():
        for name, value in fitted.aligners[task].state_dict().items():
            torch.testing.assert_close(maps.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_teachers_give_what_was_captured_of_an_image_and_see_an_augmented_one_themselves(
    merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData
) -> None:
    given = calibration(merged, experts, labelled)
    read = AugmentedReader(labelled, Augmentation.named("default", {}), 0)
    plain, changed, again = (load_one(read, item) for item in ((2, None), (2, 1), (2, 1)))
    assert torch.equal(plain, labelled[2].image[None])
    assert torch.equal(changed, again)
    assert not torch.equal(changed, plain)
    assert not torch.equal(changed, load_one(read, (2, 2)))
    for teachers, item, image in (
        (Teachers(given, ["depth"], "float32", runs=False), (2, None), plain),
        (Teachers(given, ["depth"], "float32", runs=True), (2, None), plain),
        (Teachers(given, ["depth"], "float32", runs=True), (2, 1), changed),
    ):
        patches, prefix = teachers(torch.zeros_like(image) if item[1] is None else image, [item])["depth"]
        with torch.inference_mode():
            wanted = next(e for e in experts if e.task.name == "depth").encoder(image)
        for tap, found in enumerate(wanted.maps):
            torch.testing.assert_close(patches[tap], found.flatten(2).mT, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(prefix[tap], wanted.prefix[tap], rtol=1e-4, atol=1e-5)


def test_augmented_images_are_run_through_the_experts_which_stay_as_they_were(
    merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData
) -> None:
    before, method = state_of(*experts), replace(FEW, steps=4, augment="mtan")
    trained, again, plain = (realign(merged, experts, labelled, m) for m in (method, method, replace(FEW, steps=4)))
    assert state_of(*experts) == before
    assert record(trained)["errors_held_out"] == record(again)["errors_held_out"]
    assert record(trained)["errors_held_out"][0] == record(plain)["errors_held_out"][0]
    assert record(trained)["errors_held_out"][1] != record(plain)["errors_held_out"][1]
    assert all(parameter.requires_grad for expert in experts for parameter in expert.encoder.parameters())


def test_an_epoch_has_every_image_once_in_an_order_of_its_own_and_the_last_may_end_early() -> None:
    plan = EncoderDistillation(steps=7, batch_size=4)._plan(10, seed=0)
    assert [len(batch) for batch in plan] == [4, 4, 2, 4, 4, 2, 4]
    items = [item for batch in plan for item in batch]
    orders = [[index for index, epoch in items if epoch == number] for number in (1, 2, 3)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]
    assert len(set(orders[2])) == 4


@pytest.mark.slow
def test_processes_that_read_change_nothing(
    merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData
) -> None:
    method = replace(FEW, steps=4, augment="default")
    alone, helped = (realign(merged, experts, labelled, replace(method, workers=n)) for n in (0, 2))
    assert record(alone)["errors_held_out"] == record(helped)["errors_held_out"]
    assert state_of(alone.encoder) == state_of(helped.encoder)


def test_training_that_only_harms_is_dropped(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    trained = realign(merged, experts, TinyData(6), replace(FEW, lr=100.0, steps=4))
    assert state_of(trained.encoder) == state_of(merged.encoder)
    assert record(trained)["steps_kept"] == 0
    assert record(trained)["trainable_parameters"] == 0


@pytest.mark.parametrize("steps", [*range(1, 13), 40])
def test_a_schedule_of_any_length_runs(merged: MultiTaskModel, experts: list[SingleTaskModel], steps: int) -> None:
    trained = realign(merged, experts, TinyData(3), replace(FEW, steps=steps))
    assert len(record(trained)["errors_held_out"]) == 1 + min(steps, 16)


def test_training_that_diverges_ends_and_is_told(
    merged: MultiTaskModel, experts: list[SingleTaskModel], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        trained = realign(merged, experts, TinyData(6), replace(FEW, lr=1e30, steps=9))
    assert state_of(trained.encoder) == state_of(merged.encoder)
    assert len(record(trained)["errors_held_out"]) < 10
    assert all(map(math.isfinite, record(trained)["errors_held_out"]))
    assert "at no step was it nearer to the experts on held-out images" in caplog.text


def test_what_lies_behind_the_last_tap_is_neither_trained_nor_counted() -> None:
    base = tiny_base()
    early = [tiny_expert(SEGMENTATION, base, 1, taps=(0, 1)), tiny_expert(DEPTH, base, 2, taps=(0, 1))]
    model = merge(early, WeightAverage(), base)
    trained = realign(model, early, enough(), FEW)
    new, old = trained.encoder.state_dict(), model.encoder.state_dict()
    changed = {name for name in old if not torch.equal(new[name], old[name])}
    assert any(name.startswith("vit.blocks.1.") for name in changed)
    assert not any(name.startswith(("vit.blocks.2.", "vit.blocks.3.", "vit.norm.")) for name in changed)
    assert record(trained)["trainable_parameters"] == sum(old[name].numel() for name in changed)


def test_a_task_without_weight_is_not_run(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    given = calibration(merged, experts, TinyData(5))
    loss = EncoderDistillation(weights={"segmentation": 1.0, "depth": 0.0})._loss(copy.deepcopy(merged), given, 5)
    assert set(loss.maps) == {"segmentation"}
    assert set(Teachers(given, list(loss.weights), "float32", runs=True).encoders) == {"segmentation"}


def test_a_single_image_changes_nothing_and_says_so(
    merged: MultiTaskModel, experts: list[SingleTaskModel], caplog: pytest.LogCaptureFixture
) -> None:
    trained = realign(merged, experts, TinyData(1), FEW)
    assert "of one image none can be held out, so the encoder stays as it was" in caplog.text
    assert state_of(trained.encoder) == state_of(merged.encoder)
    assert record(trained)["errors_held_out"] == []


def test_a_seed_gives_the_same_encoder_and_another_one_another(
    merged: MultiTaskModel, experts: list[SingleTaskModel]
) -> None:
    first, again, other = (realign(merged, experts, enough(), FEW, seed=seed) for seed in (0, 0, 1))
    assert state_of(first.encoder) == state_of(again.encoder) != state_of(other.encoder)


def test_a_frozen_encoder_is_trained_too(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    merged.encoder.requires_grad_(False)
    trained = realign(merged, experts, enough(), FEW)
    assert state_of(trained.encoder) != state_of(merged.encoder)


def test_an_expert_merged_with_itself_stays_as_near() -> None:
    base = tiny_base()
    first = tiny_expert(SEGMENTATION, base, 1)
    twin = SingleTaskModel(copy.deepcopy(first.encoder), tiny_expert(DEPTH, base, 2).decoder, DEPTH, first.base).eval()
    same = merge([first, twin], WeightAverage(), base)
    same.encoder.load_state_dict(first.encoder.state_dict())
    trained = realign(same, [first, twin], TinyData(6), replace(FEW, steps=4))
    assert min(record(trained)["errors_held_out"]) < 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps and batch_size of 1 or more, .* got steps 0, batch_size 16"),
        ({"batch_size": 2.5}, "takes a whole number as batch_size, got 2.5"),
        ({"lr": float("nan")}, "a positive lr .* lr nan"),
        ({"workers": -1}, r"0 workers \(a thread reads\) or more, got .* workers -1"),
        ({"precision": "int8"}, "unknown precision 'int8'; known: auto"),
        ({"augment": "mirror"}, "unknown augmentation 'mirror'; known: default, mtan, simo, or none"),
        ({"held_out": 1.0}, "between 0 and 1, got 1"),
        ({"prefix": -1.0}, "0 or more; got -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        EncoderDistillation(**options)


def test_weights_of_unknown_tasks_are_refused_before_any_image_is_read(
    merged: MultiTaskModel, experts: list[SingleTaskModel]
) -> None:
    with pytest.raises(SimoError, match="weights for unknown tasks flow; the tasks are segmentation, depth"):
        realign(merged, experts, TinyData(6), EncoderDistillation(weights={"flow": 1.0}))


def load_one(read: AugmentedReader, item: Item) -> torch.Tensor:
    return next(iter(load(read, [[item]]))).images


def calibration(merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData) -> Calibration:
    by_task = {expert.task.name: expert for expert in experts}
    return Calibration(capture_all(merged, by_task, images), images, torch.device("cpu"), experts=by_task)
