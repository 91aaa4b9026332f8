"""Shared adapters and norms fitted by gradients: what they fold into, what held-out images keep of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from simo_merge.errors import SimoError
from simo_merge.merging import WeightAverage, merge
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.models.blocks import used_blocks
from simo_merge.realign import EncoderAdapters, EncoderNorms, LinearSurgery, Realignment, realign
from tests.tiny import DEPTH, SEGMENTATION, TinyData, state_of, tiny_base, tiny_expert

both = pytest.mark.parametrize(
    "method", [EncoderAdapters(rank=4, epochs=4), EncoderNorms(epochs=4)], ids=lambda m: m.name
)


def record(model: MultiTaskModel) -> dict[str, Any]:
    assert model.merge is not None
    return dict(model.merge.alignment or {})


@both
def test_the_best_epoch_is_kept_and_the_taps_come_nearer(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, method: Realignment
) -> None:
    tuned = realign(merged, experts, images, method)
    errors, kept = record(tuned)["epochs_held_out"], record(tuned)["epochs_kept"]
    assert kept > 0
    assert errors[kept] == min(errors) < errors[0]
    for taps in record(tuned)["distances"].values():
        assert taps[-1]["after"]["explained_variance"] > taps[-1]["before"]["explained_variance"]
    assert all(parameter.requires_grad for parameter in tuned.encoder.parameters())
    again = realign(tuned, experts, images, LinearSurgery(4))
    assert record(again)["method"] == f"{method.name}+surgery-stretched"


@both
def test_a_fit_that_only_harms_is_dropped_and_ends_early(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, method: Realignment
) -> None:
    harmful = type(method)(**{**method.parameters(), "lr": 100.0, "patience": 2})
    tuned = realign(merged, experts, images, harmful)
    assert state_of(tuned.encoder) == state_of(merged.encoder)
    assert (len(record(tuned)["epochs_held_out"]), record(tuned)["epochs_kept"]) == (3, 0)
    assert record(tuned)["trainable_parameters"] == 0


@both
def test_an_expert_merged_with_itself_and_a_single_image_change_nothing(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, method: Realignment
) -> None:
    assert state_of(realign(merged, experts, TinyData(1), method).encoder) == state_of(merged.encoder)
    base = tiny_base()
    first = tiny_expert(SEGMENTATION, base, 1)
    twin = SingleTaskModel(copy.deepcopy(first.encoder), tiny_expert(DEPTH, base, 2).decoder, DEPTH, first.base).eval()
    same = merge([first, twin], WeightAverage(), base)
    same.encoder.load_state_dict(first.encoder.state_dict())
    assert state_of(realign(same, [first, twin], images, method).encoder) == state_of(same.encoder)


def test_folded_adapters_give_the_features_of_unfolded_ones(merged: MultiTaskModel) -> None:
    encoder, method = merged.encoder.eval(), EncoderAdapters(rank=3)
    images = torch.rand(2, 3, 32, 48)
    blocks = used_blocks(encoder)
    names = set(encoder.state_dict())
    with torch.no_grad():
        before = encoder(images).maps[-1]
        parameters = method.open(blocks)
        assert torch.equal(encoder(images).maps[-1], before)  # fresh ones change nothing
        for parameter in parameters:
            nn.init.normal_(parameter, std=0.05)
        unfolded = encoder(images).maps[-1]
        method.close(blocks)
        torch.testing.assert_close(encoder(images).maps[-1], unfolded)
    assert not torch.allclose(unfolded, before, atol=1e-2)
    assert set(encoder.state_dict()) == names
    assert not any(parametrize.is_parametrized(module) for module in encoder.modules())


def test_norms_alone_change_and_adapters_change_the_layers_that_were_named(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    for method, part in ((EncoderNorms(epochs=2), "norm"), (EncoderAdapters(epochs=2, layers=("mlp.fc1",)), "mlp.fc1")):
        new, old = realign(merged, experts, images, method).encoder.state_dict(), merged.encoder.state_dict()
        changed = {name for name in old if not torch.equal(new[name], old[name])}
        assert changed
        assert all(part in name for name in changed)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (EncoderNorms, {"epochs": 0}, "epochs and patience of 1 or more and a positive lr, got 0, 3"),
        (EncoderNorms, {"held_out": 0.0}, "between 0 and 1, got 0"),
        (EncoderNorms, {"prefix": -1.0}, "0 or more; got -1"),
        (EncoderNorms, {"lr": float("inf")}, "a positive lr, got 30, 3, inf"),
        (EncoderAdapters, {"rank": 0}, "rank of surgery must be 1 or more"),
        (EncoderAdapters, {"layers": "norm1"}, "layers with adapters are of attn.qkv, .*; got norm1"),
    ],
)
def test_options_out_of_range_are_refused(method: type[Realignment], options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        method(**options)
