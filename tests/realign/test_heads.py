"""Head re-alignment: decoders learn from labels on the frozen merged encoder."""

from __future__ import annotations

import copy

import pytest
import torch

from simo_merge.data import collate
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign import HeadRealignment, capture_all, realign
from tests.tiny import DEPTH, TinyData, state_of


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


def test_images_without_labels_are_refused(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    with pytest.raises(SimoError, match=r"needs labels for 'segmentation'; tiny \(val\) has none"):
        realign(merged, experts, images, HeadRealignment())


def test_labels_of_some_tasks_only_are_refused(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    with pytest.raises(SimoError, match=r"needs labels for 'segmentation'; tiny \(val\) has depth"):
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
