"""A stream of batches gives the aligners that captured features give, and keeps none of them."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign import (
    REALIGNMENTS,
    Auto,
    CalibrationFeatures,
    FullAffine,
    LinearSurgery,
    Magnitude,
    NormRecalibration,
    OnDisk,
    Procrustes,
    Realignment,
    TokenLinear,
    capture_all,
    realign,
    streaming,
)
from simo_merge.realign.realignment import Calibration
from simo_merge.realign.running import MomentsWanted, RunningMoments
from simo_merge.realign.streaming import explained_variance, moment_distances, stream_moments, within_folds
from tests.tiny import DEPTH, SEGMENTATION, TAPS, TinyData

STREAMED = [
    LinearSurgery(rank=4),
    LinearSurgery(rank=None, ridge=0.1),
    LinearSurgery(rank=6, reads="all"),
    LinearSurgery(rank=4, stretch="channels"),
    LinearSurgery(rank=4, stretch="directions"),
    LinearSurgery(rank=4, reads="all", stretch="directions"),
    LinearSurgery(rank="auto", ridge="auto", reads="auto", stretch="directions"),
    LinearSurgery(rank="auto", reads="own"),
    Auto(budget=None),
    Auto(budget=30_000, reads="own", stretch="directions"),
    FullAffine(),
    Magnitude(),
    NormRecalibration(),
    Procrustes(),
    TokenLinear(rank=4),
]
COUNT = 23  # five folds, in whose bounds batches of 16 do not fit


@pytest.fixture
def images() -> TinyData:
    return TinyData(COUNT)


def tokens(model: MultiTaskModel, captured: CalibrationFeatures, task: str) -> list[torch.Tensor]:
    patches, prefix = captured.merged.aligned(model.aligner(task))
    return [*patches, *prefix]


@pytest.mark.parametrize("method", STREAMED, ids=lambda m: f"{m.label} {' '.join(map(str, m.parameters().values()))}")
def test_a_streamed_fit_is_that_of_captured_features(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, method: Realignment
) -> None:
    captured = capture_all(merged, {e.task.name: e for e in experts}, images)
    expected = realign(merged, experts, images, method, captured, "cpu")
    found = realign(merged, experts, images, method, device="cpu", stream=True)
    assert list(found.aligners) == list(expected.aligners)
    for task in merged.tasks:
        for ours, theirs, plain in zip(
            *(tokens(model, captured, task) for model in (found, expected, merged)), strict=True
        ):
            change = float((theirs - plain).std())
            assert float((ours - theirs).abs().max()) <= 2e-3 * change + 1e-5
    assert found.merge is not None
    assert expected.merge is not None
    record, theirs_ = dict(found.merge.alignment or {}), dict(expected.merge.alignment or {})
    assert record.pop("streamed")
    for name in ("method", "images", "labels", "trainable_parameters", "seed"):
        assert record[name] == theirs_[name]
    assert record.keys() == theirs_.keys()
    for task, rows in record.get("distances", {}).items():
        assert [row["block"] for row in rows] == list(TAPS)
        for row, other in zip(rows, theirs_["distances"][task], strict=True):
            for when in ("before", "after"):
                assert list(row[when]) == ["explained_variance"]
                assert row[when]["explained_variance"] == pytest.approx(other[when]["explained_variance"], abs=2e-4)


@pytest.mark.parametrize("stream", [True, False])
def test_the_precision_is_that_of_the_passes(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, stream: bool
) -> None:
    coarse = capture_all(merged, {e.task.name: e for e in experts}, images, precision="bfloat16")
    method = LinearSurgery(rank=4)
    wanted = realign(merged, experts, images, method, coarse, "cpu")
    found, plain = (
        realign(merged, experts, images, method, device="cpu", stream=stream, precision=precision)
        for precision in ("bfloat16", "float32")
    )
    for task in merged.tasks:
        ours, theirs, other = (
            torch.cat([t.flatten() for t in tokens(m, coarse, task)]) for m in (found, wanted, plain)
        )
        assert float((ours - theirs).abs().max()) < 0.1 * float((other - theirs).abs().max())
    records = [dict(m.merge.alignment or {}) for m in (found, plain) if m.merge is not None]
    assert [record.get("captured_in") for record in records] == ["bfloat16", None]
    with pytest.raises(SimoError, match="unknown precision 'int8'; known: auto, float32, bfloat16"):
        realign(merged, experts, images, method, device="cpu", precision="int8")


@pytest.mark.parametrize("name", [name for name in REALIGNMENTS if REALIGNMENTS[name]().from_moments() is None])
def test_methods_that_need_features_refuse_and_name_the_way(
    merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData, name: str
) -> None:
    with pytest.raises(SimoError, match=r"is fitted to features and cannot be streamed; .*--capture-dir DIR"):
        realign(merged, experts, labelled, REALIGNMENTS[name](), device="cpu", stream=True)


@pytest.mark.parametrize("method", [LinearSurgery(objective="decoder"), Auto(objective="decoder")])
def test_so_does_an_objective_that_reads_them(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, method: Realignment
) -> None:
    with pytest.raises(SimoError, match="cannot be streamed"):
        realign(merged, experts, images, method, device="cpu", stream=True)


def test_features_beside_a_stream_are_refused(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    captured = capture_all(merged, {e.task.name: e for e in experts}, images)
    for options in ({"features": captured}, {"keep": OnDisk("folder")}):
        with pytest.raises(SimoError, match="a stream keeps no features and reads none"):
            realign(merged, experts, images, device="cpu", stream=True, **options)  # type: ignore[arg-type]
    given = Calibration(None, images, torch.device("cpu"), streamed=RunningMoments(MomentsWanted(), (48, 48)))
    with pytest.raises(SimoError, match="the images were streamed"):
        _ = given.features


def test_every_image_is_run_once_by_every_encoder_and_no_batch_is_kept(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    for encoder in (merged.encoder, *(e.encoder for e in experts)):
        encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    kept: list[weakref.ref[torch.Tensor]] = []
    encode = streaming.encode

    def watched(*arguments: object) -> object:
        found = encode(*arguments)  # type: ignore[arg-type]
        kept.extend(weakref.ref(t) for t in found[0])
        return found

    monkeypatch.setattr(streaming, "encode", watched)
    realign(merged, experts, images, LinearSurgery(rank=4, stretch="directions"), device="cpu", stream=True)
    assert seen == [16] * 3 + [COUNT - 16] * 3
    assert all(reference() is None for reference in kept)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
@pytest.mark.parametrize("joint", [False, True])
def test_folds_are_those_of_captured_features_whatever_the_batches(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, batch_size: int, joint: bool
) -> None:
    by_task = {e.task.name: e for e in experts}
    wanted = MomentsWanted(joint, 5, alone=True)
    found = stream_moments(merged, by_task, images, wanted, torch.device("cpu"), batch_size)
    given = Calibration(capture_all(merged, by_task, images), images, torch.device("cpu"))
    expected = given.folded(joint)
    assert len(found.folded().folds) == len(expected.folds) == 5
    for ours, theirs in zip(found.folded().folds, expected.folds, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            for group, other in zip(a.groups, b.groups, strict=True):
                assert group.count == other.count
                torch.testing.assert_close(group.xx, other.xx, rtol=1e-4, atol=1e-3)
                for task in by_task:
                    torch.testing.assert_close(group.xy[task], other.xy[task], rtol=1e-4, atol=1e-3)
                    torch.testing.assert_close(group.yy[task], other.yy[task], rtol=1e-4, atol=1e-3)
    for cell, moments in given.alone().items():
        torch.testing.assert_close(found.alone[cell].xx, moments.xx, rtol=1e-5, atol=1e-4)


def test_images_fall_into_the_folds_that_they_are_of() -> None:
    bounds = [(0, 3), (3, 5), (5, 9)]
    for first in range(9):
        for count in range(1, 10 - first):
            found = [(i, fold) for fold, part in within_folds(bounds, first, count) for i in range(count)[part]]
            assert found == [(i, f) for i in range(count) for f, (a, b) in enumerate(bounds) if a <= first + i < b]


def test_explained_variance_is_the_formula(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    images, by_task = TinyData(7), {e.task.name: e for e in experts}
    captured = capture_all(merged, by_task, images)
    for method in (TokenLinear(rank=3), LinearSurgery(rank=3, reads="all", stretch="directions")):
        aligned = realign(merged, experts, images, method, captured, "cpu")
        folded = Calibration(captured, images, torch.device("cpu")).folded(joint=method.name != "token-linear", folds=1)
        rows = moment_distances(aligned, folded)["depth"]
        x, _ = captured.merged.aligned(aligned.aligner("depth"))
        for tap, row in enumerate(rows):
            y = captured.experts["depth"].patches[tap].double()
            spread = float((y - y.mean((0, 1))).square().sum())
            for when, ours in (("before", captured.merged.patches[tap]), ("after", x[tap])):
                expected = 1 - float((ours.double() - y).square().sum()) / spread
                assert row[when]["explained_variance"] == pytest.approx(expected, abs=1e-4)
        assert explained_variance(folded.of_taps()[1], "depth") < 1


def test_images_that_cannot_be_compared_are_refused(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    images.samples[16:] = [replace(s, image=torch.rand(3, 48, 48)) for s in images.samples[16:]]  # the second batch
    with pytest.raises(SimoError, match=r"(?s)different sizes.*val-0-16"):
        realign(merged, experts, images, device="cpu", stream=True)
    with pytest.raises(SimoError, match="no expert for depth"):
        realign(merged, experts[:1], TinyData(3), device="cpu", stream=True)
    with pytest.raises(SimoError, match="no calibration images"):
        realign(merged, experts, TinyData(0), device="cpu", stream=True)
    images.samples[0].image[:] = torch.nan
    with pytest.raises(SimoError, match=r"the merged encoder gives at block 1 .*NaN"):
        realign(merged, experts, images, device="cpu", stream=True)


def test_one_image_can_be_streamed(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    data = TinyData(1, (SEGMENTATION, DEPTH))
    for method in (LinearSurgery(rank=4), Auto(), LinearSurgery(rank="auto")):
        found = realign(merged, experts, data, method, device="cpu", stream=True)
        with torch.inference_mode():
            assert all(value.isfinite().all() for value in found(data[0].image[None]).values())
