"""Objectives of aligners against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simo_merge.data import collate
from simo_merge.errors import SimoError
from simo_merge.models import Aligner, MultiTaskModel, SingleTaskModel
from simo_merge.realign import ALIGNER_OBJECTIVES, CalibrationFeatures, capture_all
from simo_merge.realign.gradient_surgery import fitted_task
from simo_merge.realign.objectives import NEED_LABELS, Fitted, aligner_objective
from simo_merge.realign.realignment import Calibration
from simo_merge.tasks.agreement import prediction_distance
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData

INDEX = torch.tensor([1, 3, 4])


@pytest.fixture
def found(merged: MultiTaskModel, experts: list[SingleTaskModel], labelled: TinyData) -> CalibrationFeatures:
    return capture_all(merged, {e.task.name: e for e in experts}, labelled)


def given(model: MultiTaskModel, task: str, found: CalibrationFeatures, labelled: TinyData) -> Fitted:
    return fitted_task(model, task, Calibration(found, labelled, torch.device("cpu")))


def disturbed(model: MultiTaskModel) -> Aligner:
    """An aligner that changes everything a little."""
    aligner = Aligner("full-affine", model.encoder.tap_channels, model.encoder.prefix_tokens)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in aligner.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return aligner


def tokens(found: CalibrationFeatures, task: str, aligner: Aligner, tap: int) -> list[tuple[Tensor, Tensor]]:
    """Aligned and expert's tokens of each group, (n, C)."""
    module = aligner.taps[tap]
    merged, expert = found.merged, found.experts[task]
    x, z = merged.patches[tap][INDEX], merged.prefix[tap][INDEX]
    patches = x + x @ module.change.full.T + module.patch_offset  # type: ignore[union-attr, operator]
    prefix = z + z @ module.change.full.T + module.prefix_offset  # type: ignore[union-attr, operator]
    y, w = expert.patches[tap][INDEX], expert.prefix[tap][INDEX]
    groups = [(patches.flatten(0, 1), y.flatten(0, 1))]
    return groups + [(prefix[:, i], w[:, i]) for i in range(z.shape[1])]


def l1(pairs: list[tuple[Tensor, Tensor]], _: Tensor) -> Tensor:
    return torch.cat([(x - y).abs().flatten() for x, y in pairs]).mean()


def l2(pairs: list[tuple[Tensor, Tensor]], scale: Tensor) -> Tensor:
    return torch.stack([((x - y) / scale).square().mean() for x, y in pairs]).mean()


def cosine_smooth(pairs: list[tuple[Tensor, Tensor]], scale: Tensor) -> Tensor:
    total = []
    for x, y in pairs:
        u, v = x / scale, y / scale
        cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))
        size = (u - v).abs()
        smooth = torch.where(size < 1, size.square() / 2, size - 0.5).mean(1)
        total.append((0.9 * (1 - cosine) + 0.1 * smooth).mean())
    return torch.stack(total).mean()


@pytest.mark.parametrize(
    ("name", "formula"), [("feature-l1", l1), ("feature-l2", l2), ("cosine-smooth-l1", cosine_smooth)]
)
def test_feature_objectives_are_their_formulas(
    merged: MultiTaskModel, found: CalibrationFeatures, labelled: TinyData, name: str, formula: object
) -> None:
    aligner = disturbed(merged)
    for task in merged.tasks:
        parts = []
        for tap in range(2):
            deviation = found.experts[task].patches[tap].flatten(0, 1).double().std(0, correction=0)
            scale = deviation.clamp_min(0.1 * deviation.median()).float()
            parts.append(formula(tokens(found, task, aligner, tap), scale))  # type: ignore[operator]
        value = ALIGNER_OBJECTIVES[name](given(merged, task, found, labelled), aligner, INDEX)
    assert float(value) == pytest.approx(float(torch.stack(parts).mean()), rel=1e-4)


def test_prediction_agreement_compares_what_the_frozen_decoder_makes_of_both(
    merged: MultiTaskModel, experts: list[SingleTaskModel], found: CalibrationFeatures, labelled: TinyData
) -> None:
    aligner = disturbed(merged)
    images = collate([labelled[int(i)] for i in INDEX]).images
    with torch.inference_mode():
        taps = aligner(merged.encoder(images))
        for expert in experts:
            task = expert.task.name
            ours, wanted = expert.decode(taps, (32, 48)), expert(images)
            value = ALIGNER_OBJECTIVES["predictions"](given(merged, task, found, labelled), aligner, INDEX)
            if task == "segmentation":
                p, q = wanted.softmax(1), ours.softmax(1)
                truth = (p * (p.log() - q.log())).sum(1).mean()
            else:
                truth = (ours - wanted).abs().mean()
            assert float(value) == pytest.approx(float(truth), rel=1e-3, abs=1e-6)


def test_supervision_is_the_loss_of_the_task_on_the_labels_of_the_same_images(
    merged: MultiTaskModel, experts: list[SingleTaskModel], found: CalibrationFeatures, labelled: TinyData
) -> None:
    aligner = disturbed(merged)
    batch = collate([labelled[int(i)] for i in INDEX])
    for expert in experts:
        name = expert.task.name
        with torch.inference_mode():
            ours = expert.decode(aligner(merged.encoder(batch.images)), (32, 48))
        value = ALIGNER_OBJECTIVES["supervised"](given(merged, name, found, labelled), aligner, INDEX)
        truth = expert.task.loss(ours, batch.targets[name], batch.masks[name])
        assert float(value) == pytest.approx(float(truth), rel=1e-4)


@pytest.mark.parametrize("name", [n for n in ALIGNER_OBJECTIVES if n not in NEED_LABELS])
def test_label_free_objectives_are_zero_where_aligned_features_are_the_experts(
    merged: MultiTaskModel, found: CalibrationFeatures, labelled: TinyData, name: str
) -> None:
    own = CalibrationFeatures(found.merged, dict.fromkeys(found.experts, found.merged))
    aligner = Aligner("identity", merged.encoder.tap_channels, merged.encoder.prefix_tokens)
    for task in merged.tasks:
        assert float(ALIGNER_OBJECTIVES[name](given(merged, task, own, labelled), aligner, INDEX)) == pytest.approx(
            0, abs=1e-6
        )


def test_normals_agree_by_their_angle() -> None:
    u, v = (F.normalize(torch.randn(2, 3, 4, 5), dim=1) for _ in range(2))
    assert float(prediction_distance(NORMALS, u, v)) == pytest.approx(float((1 - (u * v).sum(1)).mean()))
    assert float(prediction_distance(DEPTH, u, v)) == pytest.approx(float((u - v).abs().mean()))
    assert float(prediction_distance(SEGMENTATION, u, u)) == pytest.approx(0, abs=1e-6)


def test_an_unknown_objective_lists_the_known_ones() -> None:
    with pytest.raises(SimoError, match=r"'hinge'; known: feature-l1, feature-l2, .*supervised"):
        aligner_objective("hinge")
