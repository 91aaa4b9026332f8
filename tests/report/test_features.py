"""What a page shows of features, against what the parts that it is made of give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from simo_merge.colours import magma
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.realign import LinearSurgery, NormRecalibration, capture, error_maps, realign, tap_distances
from simo_merge.report.features import drawn_map, feature_views
from tests.tiny import DEPTH, SIZE, TinyData, tiny_base, tiny_expert

NAMES = ("merge", "merge+surgery")


@pytest.fixture
def models(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> dict[str, MultiTaskModel]:
    images = TinyData(6)
    return {
        "merge+surgery": realign(merged, experts, images, LinearSurgery(rank=8), device="cpu"),
        "merge+norm": realign(merged, experts, images, NormRecalibration(), device="cpu"),
        "merge+head": merged,  # as a re-alignment that changes decoders alone
    }


def test_every_method_that_changes_features_has_its_distances(
    merged: MultiTaskModel, experts: list[SingleTaskModel], models: dict[str, MultiTaskModel]
) -> None:
    images = TinyData(5, seed=3)
    del models["merge+head"]
    found = feature_views(images, experts, merged, models, NAMES, "float32")
    assert [(row.method, row.task, row.tap) for row in found.alignment] == [
        (method, e.task.name, tap)
        for e in experts
        for method in ("merge", "merge+surgery", "merge+norm")
        for tap in ("block 1", "block 3")
    ]
    ours, theirs = (capture(model.encoder, images) for model in (merged, experts[1]))
    expected = tap_distances(ours, theirs, (1, 3), models["merge+surgery"].aligner("depth"), cka=True)
    rows = [row for row in found.alignment if (row.method, row.task) == ("merge+surgery", "depth")]
    for row, distance in zip(rows, expected, strict=True):
        assert row.l1 == pytest.approx(distance.l1)
        assert row.cka == pytest.approx(distance.cka)
        assert math.isfinite(row.explained_variance)
    assert [(cloud.task, cloud.tap) for cloud in found.clouds] == [
        (e.task.name, tap) for e in experts for tap in ("block 1", "block 3")
    ]
    assert all(cloud.aligned is not None and len(cloud.expert) == 5 * 6 for cloud in found.clouds)


def test_errors_are_mapped_for_the_mean_and_for_some_images(
    merged: MultiTaskModel, experts: list[SingleTaskModel], models: dict[str, MultiTaskModel]
) -> None:
    images = TinyData(7, seed=3)
    found = feature_views(images, experts, merged, models, NAMES, "float32")
    assert [panel.title for panel in found.errors] == ["mean over 7 images", *(images.keys[i] for i in (0, 2, 4))]
    panel = found.errors[2]
    assert [cell.column_label for cell in panel.cells] == [*NAMES, *NAMES]
    ours, theirs = (capture(model.encoder, images) for model in (merged, experts[0]))
    errors = error_maps(ours, theirs).mean(1)
    top = float(np.percentile(errors.numpy(), 99))
    cell = panel.cells[0]
    assert cell.row_label == f"segmentation, 0 to {top:.2g}"
    expected = magma(np.clip(errors[2].double().numpy() / top, 0, 1))
    assert np.array_equal(cell.picture[8::16, 8::16], expected)


def test_a_map_lies_where_the_encoder_sees_its_patches() -> None:
    encoder = tiny_expert(DEPTH, tiny_base()).encoder  # patches of 16
    values = torch.arange(6.0).reshape(2, 3)
    drawn = drawn_map(values, 5.0, encoder, SIZE)
    assert drawn.shape == (*SIZE, 3)
    assert np.array_equal(drawn[:16, 16:32], np.broadcast_to(magma(np.array(0.2)), (16, 16, 3)))
    cropped = drawn_map(values, 5.0, encoder, (30, 44))  # padded by 1 above and by 2 at the left
    assert np.array_equal(cropped, drawn[1:31, 2:46])


def test_a_map_without_any_error_is_dark() -> None:
    encoder = tiny_expert(DEPTH, tiny_base()).encoder
    assert drawn_map(torch.zeros(2, 3), 0.0, encoder, SIZE).max() == magma(np.array(0.0)).max()
