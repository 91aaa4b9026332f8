"""Online surgery: the aligners of a stream are those of the same images at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simo_merge.checkpoints import save
from simo_merge.data import collate
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign import EncoderCalibration, LinearSurgery, OnlineSurgery, SurgeryV2, realign
from tests.tiny import TinyData, state_of


def batches(images: TinyData, sizes: list[int]) -> list[Tensor]:
    whole = collate([images[i] for i in range(len(images))]).images
    return list(whole[: sum(sizes)].split(sizes))


def predictions_agree(ours: MultiTaskModel, theirs: MultiTaskModel, images: Tensor, tolerance: float = 1e-4) -> bool:
    with torch.inference_mode():
        a, b = ours(images), theirs(images)
    return all(torch.allclose(a[task], b[task], atol=tolerance, rtol=tolerance) for task in a)


@pytest.mark.parametrize(
    "method",
    [LinearSurgery(rank=4), LinearSurgery(rank=None), LinearSurgery(rank=100), LinearSurgery(rank=6, reads="all")],
    ids=lambda method: f"rank {method.rank} {method.reads}",
)
def test_after_the_same_images_the_model_is_that_of_the_batch_fit(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, method: LinearSurgery
) -> None:
    stream = OnlineSurgery(merged, experts, method, every=100, device="cpu")
    seen = batches(images, [1, 3, 2])
    for batch in seen:
        assert not stream.update(batch)
    expected = realign(merged, experts, images, method, device="cpu")
    unseen = collate([TinyData(3, seed=5)[i] for i in range(3)]).images
    assert not predictions_agree(stream.model, expected, unseen)  # nothing was solved yet
    assert predictions_agree(stream.refresh(), expected, unseen)


def test_the_aligners_are_solved_again_whenever_so_many_images_have_come(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    stream = OnlineSurgery(merged, experts, LinearSurgery(rank=4), every=2, device="cpu")
    due = [stream.update(batch) for batch in batches(images, [1, 1, 3, 1])]
    assert due == [False, True, True, True]  # 1, 2, 5 and 6 images
    assert stream.images == 6
    assert predictions_agree(
        stream.model,
        realign(merged, experts, images, LinearSurgery(rank=4), device="cpu"),
        collate([TinyData(2, seed=7)[i] for i in range(2)]).images,
    )


def test_images_of_another_size_are_taken_up_too(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    stream = OnlineSurgery(merged, experts, LinearSurgery(rank=4), device="cpu")
    stream.update(torch.rand(2, 3, 32, 48))
    stream.update(torch.rand(2, 3, 48, 32))
    assert stream.images == 4
    assert stream.refresh().merge is not None


def test_one_image_gives_finite_predictions(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    stream = OnlineSurgery(merged, experts, LinearSurgery(rank=4), every=1, device="cpu")
    assert stream.update(images[0].image[None])
    with torch.inference_mode():
        assert all(value.isfinite().all() for value in stream.model(images[1].image[None]).values())


def test_neither_the_merged_model_nor_an_expert_is_changed(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    before = state_of(merged, *experts)
    stream = OnlineSurgery(merged, experts, LinearSurgery(rank=4), every=1, device="cpu")
    stream.update(images[0].image[None])
    assert state_of(merged, *experts) == before
    assert not len(merged.aligners)


def test_the_model_records_what_it_has_seen_and_can_be_saved(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, tmp_path: Path
) -> None:
    stream = OnlineSurgery(merged, experts, LinearSurgery(rank=4), every=2, device="cpu")
    for batch in batches(images, [2, 2, 1]):
        stream.update(batch)
    save(stream.model, tmp_path / "model")
    recorded = json.loads((tmp_path / "model" / "config.json").read_text())["merge"]["alignment"]
    assert (recorded["method"], recorded["rank"], recorded["labels"]) == ("surgery-stretched", 4, 0)
    assert (recorded["images"], recorded["online"]) == (4, {"every": 2})
    assert recorded["trainable_parameters"] == sum(p.numel() for p in stream.model.aligners.parameters())


def test_features_that_are_not_finite_leave_no_trace(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    stream = OnlineSurgery(merged, experts, LinearSurgery(rank=4), device="cpu")
    with pytest.raises(SimoError, match="holds NaN or infinity"):
        stream.update(torch.full((1, 3, 32, 48), torch.nan))
    assert stream.images == 0
    with pytest.raises(SimoError, match="no image has come yet"):
        stream.refresh()


def test_what_cannot_be_done_online_is_refused(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    with pytest.raises(SimoError, match="cannot choose rank, reads"):
        OnlineSurgery(merged, experts, LinearSurgery(rank="auto", reads="auto"))
    with pytest.raises(SimoError, match="keeps no features, and the objective 'decoder' reads them"):
        OnlineSurgery(merged, experts, LinearSurgery(objective="decoder"), device="cpu")
    with pytest.raises(SimoError, match="no expert for depth"):
        OnlineSurgery(merged, experts[:1])
    with pytest.raises(SimoError, match="1 or more; got 0"):
        OnlineSurgery(merged, experts, every=0)
    assert merged.merge is not None
    merged.merge = replace(merged.merge, alignment={"method": "head"})
    with pytest.raises(SimoError, match="aligned already"):
        OnlineSurgery(merged, experts)


def test_it_may_follow_a_change_of_the_encoder_that_all_tasks_share(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    calibrated = realign(merged, experts, images, EncoderCalibration(), device="cpu")
    stream = OnlineSurgery(calibrated, experts, LinearSurgery(rank=4), device="cpu")
    for batch in batches(images, [4, 2]):
        stream.update(batch)
    expected = realign(calibrated, experts, images, LinearSurgery(rank=4), device="cpu")
    assert predictions_agree(stream.refresh(), expected, batches(images, [6])[0])
    found, record = (model.merge.alignment or {} for model in (stream.model, expected) if model.merge is not None)
    assert found["method"] == record["method"] == "encoder-calibration+surgery-stretched"
    assert found["trainable_parameters"] == record["trainable_parameters"]
    with pytest.raises(SimoError, match="differs from task to task"):
        OnlineSurgery(realign(merged, experts, images, SurgeryV2(rank=4, held_out=None), device="cpu"), experts)
