"""Head re-alignment: decoders learn from labels on the frozen merged encoder."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from simo_merge.data import collate
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign import HeadDistillation, HeadRealignment, LinearSurgery, capture_all, realign
from simo_merge.realign.realignment import Calibration
from simo_merge.tasks.agreement import prediction_distance
from tests.tiny import DEPTH, TinyData, Unreadable, state_of


def loss(model: MultiTaskModel, data: TinyData, task: str) -> float:
    batch = collate([data[i] for i in range(len(data))])
    with torch.inference_mode():
        return float(model.tasks[task].loss(model(batch.images)[task], batch.targets[task], batch.masks[task]))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_loss_of_every_task_falls_and_the_encoder_stays(
    merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData, precision: str
) -> None:
    method = HeadRealignment(steps=30, lr=1e-2, batch_size=4, precision=precision)
    aligned = realign(merged, experts, labelled, method)
    for task in merged.tasks:
        assert loss(aligned, labelled, task) < loss(merged, labelled, task)
    assert state_of(aligned.encoder) == state_of(merged.encoder)
    assert not aligned.aligners


@pytest.mark.parametrize("size", [(32, 48), (24, 40)])
def test_the_fit_is_one_cycle_adamw_on_the_loss_of_the_cropped_prediction(
    merged: MultiTaskModel, experts: list[SingleTaskModel], size: tuple[int, int]
) -> None:
    data = TinyData(4, tuple(merged.tasks.values()), size=size)
    method = HeadRealignment(steps=3, lr=1e-2, batch_size=4, precision="float32")
    aligned = realign(merged, experts, data, method)
    plain, batch = copy.deepcopy(merged), collate(data.samples)
    decoder = plain.decoders["depth"].train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=4, cycle_momentum=False)
    with torch.no_grad():
        taps = plain.encoder(batch.images)
    for _ in range(3):
        prediction = plain.decode(taps, "depth", size)
        optimizer.zero_grad()
        plain.tasks["depth"].loss(prediction, batch.targets["depth"], batch.masks["depth"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    for name, parameter in decoder.named_parameters():
        found, before = aligned.decoders["depth"].get_parameter(name), merged.decoders["depth"].get_parameter(name)
        assert (found - parameter).abs().mean() < 0.01 * (parameter - before).abs().mean()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_are_enough_for_the_schedule(
    merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData, steps: int
) -> None:
    aligned = realign(merged, experts, labelled, HeadRealignment(steps=steps))
    assert all(torch.isfinite(p).all() for p in aligned.parameters())
    assert state_of(aligned.decoders) != state_of(merged.decoders)


def test_the_seed_determines_the_result(
    merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData
) -> None:
    method = HeadRealignment(steps=4, batch_size=2)
    first, again, other = (realign(merged, experts, labelled, method, seed=seed) for seed in (0, 0, 1))
    assert state_of(first) == state_of(again)
    assert state_of(first) != state_of(other)


def test_images_without_labels_are_refused(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    with pytest.raises(SimoError, match=r"head needs labels for segmentation, depth, and tiny \(val\) has none"):
        realign(merged, experts, Unreadable(3), HeadRealignment())  # before any image is run


def test_labels_of_some_tasks_only_are_refused(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    with pytest.raises(SimoError, match=r"needs labels for segmentation, and tiny \(val\) has depth"):
        realign(merged, experts, TinyData(3, (DEPTH,)), HeadRealignment())


def test_labels_of_other_images_than_the_features_are_refused(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    features = capture_all(merged, {e.task.name: e for e in experts}, images)
    other = TinyData(6, tuple(merged.tasks.values()), seed=1)
    with pytest.raises(SimoError, match="captured from other images"):
        realign(merged, experts, other, HeadRealignment(), features)


@pytest.mark.parametrize("options", [{"steps": 0}, {"lr": 0.0}, {"batch_size": 0}, {"precision": "float16"}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(SimoError, match=str(next(iter(options.values())))):
        HeadRealignment(**options)  # type: ignore[arg-type]


def distance(model: MultiTaskModel, experts: list[SingleTaskModel], data: TinyData, task: str) -> float:
    """How far the model's predictions are from the expert's."""
    pictures = collate(data.samples).images
    expert = next(e for e in experts if e.task.name == task)
    with torch.inference_mode():
        return float(prediction_distance(expert.task, model(pictures)[task], expert(pictures)))


def distilled(model: MultiTaskModel) -> dict[str, Any]:
    assert model.merge is not None
    return dict((model.merge.alignment or {})["distilled"])


def test_without_labels_the_decoders_come_nearer_to_what_the_experts_predict(
    merged: MultiTaskModel, experts: list[SingleTaskModel]
) -> None:
    images = TinyData(20)
    aligned = realign(merged, experts, images, HeadDistillation(steps=60, lr=3e-3, batch_size=8, precision="float32"))
    assert all(told["kept"] for told in distilled(aligned).values())
    for task in merged.tasks:
        assert distance(aligned, experts, images, task) < distance(merged, experts, images, task)
    assert state_of(aligned.encoder) == state_of(merged.encoder)
    assert not aligned.aligners


def test_a_decoder_that_held_out_images_speak_against_stays_behind_its_aligner(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    method = HeadDistillation(steps=5, lr=10.0, batch_size=4, precision="float32", surgery=4)
    aligned = realign(merged, experts, images, method)
    assert not any(told["kept"] for told in distilled(aligned).values())
    assert all(told["after"] > told["before"] for told in distilled(aligned).values())
    assert state_of(aligned) == state_of(realign(merged, experts, images, LinearSurgery(4, stretch="none")))


def test_the_distance_before_is_that_of_the_held_out_images(
    merged: MultiTaskModel, experts: list[SingleTaskModel]
) -> None:
    images = TinyData(10)
    aligned = realign(merged, experts, images, HeadDistillation(steps=1, surgery=4))
    surgery, last = realign(merged, experts, images, LinearSurgery(4, stretch="none")), copy.copy(images)
    last.samples = images.samples[8:]
    for task, told in distilled(aligned).items():
        assert told["before"] == pytest.approx(distance(surgery, experts, last, task), rel=1e-3)


def test_the_teacher_is_the_decoder_as_it_was_on_the_experts_features(
    merged: MultiTaskModel, experts: list[SingleTaskModel]
) -> None:
    """One step a time on all images but the last, which is held out."""
    data = TinyData(5)
    features = capture_all(merged, {e.task.name: e for e in experts}, data)
    method = HeadDistillation(steps=3, lr=1e-2, batch_size=4, precision="float32")
    given = Calibration(features, data, torch.device("cpu"))
    _, student, _ = method._distil(copy.deepcopy(merged), "depth", given)
    plain, pictures = copy.deepcopy(merged), collate(data.samples[:4]).images
    decoder = plain.decoders["depth"].train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=4, cycle_momentum=False)
    expert = next(e for e in experts if e.task.name == "depth")
    with torch.no_grad():
        taps, wanted = plain.encoder(pictures), expert(pictures)
    for _ in range(3):
        optimizer.zero_grad()
        (plain.decode(taps, "depth", (32, 48)) - wanted).abs().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    for name, parameter in decoder.named_parameters():
        found, before = student.get_parameter(name), merged.decoders["depth"].get_parameter(name)
        assert (found - parameter).abs().mean() < 0.01 * (parameter - before).abs().mean()


def test_one_image_teaches_no_decoder(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    aligned = realign(merged, experts, TinyData(1), HeadDistillation(steps=2))
    assert state_of(aligned.decoders) == state_of(merged.decoders)


def test_distillation_asks_for_no_labels_and_checks_its_options(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    assert not HeadDistillation().needs_labels
    assert HeadRealignment().needs_labels
    with pytest.raises(SimoError, match="rank of surgery must be 1 or more"):
        HeadDistillation(surgery=0)
    with pytest.raises(SimoError, match="lr positive"):
        HeadDistillation(lr=0.0)
    with pytest.raises(SimoError, match="between 0 and 1, got 0"):
        HeadDistillation(held_out=0.0)
