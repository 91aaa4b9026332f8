"""Forward-order calibration: what it solves, what held-out images keep of it, and what it leaves alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simo_merge.checkpoints import load, save
from simo_merge.errors import SimoError
from simo_merge.merging import TaskArithmetic, WeightAverage, merge
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel
from simo_merge.realign import CalibrationFeatures, EncoderCalibration, LinearSurgery, capture, capture_all, realign
from simo_merge.realign.closed_form import error_scale
from simo_merge.realign.inside.places import PLACES
from tests.tiny import DEPTH, SEGMENTATION, TinyData, state_of, tiny_base, tiny_expert

ALL = tuple(PLACES)


def rows(model: MultiTaskModel) -> list[dict[str, Any]]:
    assert model.merge is not None
    return list((model.merge.alignment or {})["blocks"])


def embedded(encoder: Encoder, images: Tensor) -> Tensor:
    vit = encoder._timm
    return vit._pos_embed(vit.patch_embed((images - encoder.mean) / encoder.std))  # type: ignore[no-any-return]


def least_squares(read: Tensor, wanted: Tensor, ridge: float, prefix: float) -> tuple[Tensor, Tensor]:
    """Weight and bias that bring rows (n, N, D) nearest to what is wanted, one prefix token first; float64."""
    weights = torch.ones(read.shape[1], dtype=torch.float64)
    weights[0] = prefix
    root = weights.sqrt().repeat(len(read))[:, None]
    a, d = read.double().flatten(0, 1), wanted.double().flatten(0, 1)
    about = a - (root.square() * a).sum(0) / root.square().sum()
    scale = (root * about).square().sum(0).sqrt()
    design = torch.cat([root * torch.cat([a, torch.ones(len(a), 1)], 1), torch.cat([torch.diag(scale * ridge**0.5),
                        torch.zeros(len(scale), 1)], 1)])  # fmt: skip
    found = torch.linalg.lstsq(design, torch.cat([root * d, torch.zeros(len(scale), d.shape[1])])).solution
    return found[:-1].T, found[-1]


@pytest.mark.parametrize("weights", [None, {"depth": 3.0}])
def test_the_first_blocks_layers_are_solved_in_order_towards_the_experts_mean_stream(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, weights: dict[str, float] | None
) -> None:
    calibrated = realign(merged, experts, images, EncoderCalibration(ridge=0.2, weights=weights, held_out=0.25))
    kept = rows(calibrated)[0]["kept"]
    assert kept > 0
    pixels = torch.stack([sample.image for sample in images.samples[:9]])
    shares = [0.5, 0.5] if weights is None else [0.25, 0.75]
    block = copy.deepcopy(merged.encoder._timm.blocks[0])
    with torch.no_grad():
        middle, end = 0.0, 0.0
        for share, expert in zip(shares, experts, strict=True):
            theirs, x = expert.encoder._timm.blocks[0], embedded(expert.encoder, pixels)
            between = x + theirs.attn(theirs.norm1(x))
            middle, end = middle + share * between, end + share * (between + theirs.mlp(theirs.norm2(between)))
        x = embedded(merged.encoder, pixels)
        read: list[Tensor] = []
        hook = block.attn.proj.register_forward_pre_hook(lambda _, args: read.append(args[0]))
        present = x + block.attn(block.norm1(x))
        hook.remove()
        weight, bias = least_squares(read[0], middle - present, 0.2, prefix=6.0)
        block.attn.proj.weight += weight
        block.attn.proj.bias += bias
        between = x + block.attn(block.norm1(x))
        hidden = block.mlp.act(block.mlp.fc1(block.norm2(between)))
        weight, bias = least_squares(hidden, end - between - block.mlp.fc2(hidden), 0.2, prefix=6.0)
        block.mlp.fc2.weight += weight
        block.mlp.fc2.bias += bias
    old, new = merged.encoder._timm.blocks[0], calibrated.encoder._timm.blocks[0]
    for name, value in old.state_dict().items():
        wanted = torch.lerp(value, block.state_dict()[name], kept)
        torch.testing.assert_close(new.state_dict()[name], wanted, rtol=1e-3, atol=2e-5, msg=name)
        assert torch.equal(new.state_dict()[name], value) != name.startswith(("attn.proj", "mlp.fc2")), name


@pytest.mark.parametrize("layers", [("attn.proj", "mlp.fc2"), ALL, ("norm1", "norm2")], ids="+".join)
def test_the_held_out_error_never_rises_and_is_that_of_the_calibrated_encoder(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, layers: tuple[str, ...]
) -> None:
    calibrated = realign(merged, experts, images, EncoderCalibration(layers=layers, held_out=0.25))
    for row in rows(calibrated):
        assert sum(row["held_out"]) <= sum(row["held_out_before"])
    assert any(row["kept"] for row in rows(calibrated))
    by_task = {expert.task.name: expert for expert in experts}
    for model, row in (
        (merged, rows(calibrated)[0]["held_out_before"]),
        (calibrated, rows(calibrated)[-1]["held_out"]),
    ):
        found = capture_all(model, by_task, images)
        held_out = found.subset(slice(9, None))
        for tap, told in zip((1, 0), reversed(row), strict=False):  # the last row is of the last tap alone
            error = 0.0
            for expert in held_out.experts.values():
                scale = error_scale(expert.patches[tap].flatten(0, 1).std(0, correction=0))
                patches = ((held_out.merged.patches[tap] - expert.patches[tap]) / scale).square().mean((0, 2)).sum()
                prefix = ((held_out.merged.prefix[tap] - expert.prefix[tap]) / scale).square().mean((0, 2)).sum()
                error += 0.5 * float(patches + 6 * prefix) / 12
            assert told == pytest.approx(error, rel=1e-3)


def test_features_come_nearer_to_the_experts_and_the_record_says_by_how_much(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    calibrated = realign(merged, experts, images, EncoderCalibration())
    assert calibrated.merge is not None
    for taps in (calibrated.merge.alignment or {})["distances"].values():
        for tap in taps:
            assert tap["after"]["explained_variance"] > tap["before"]["explained_variance"]


def test_an_expert_merged_with_itself_is_not_changed(images: TinyData) -> None:
    base = tiny_base()
    first = tiny_expert(SEGMENTATION, base, 1)
    twin = SingleTaskModel(copy.deepcopy(first.encoder), tiny_expert(DEPTH, base, 2).decoder, DEPTH, first.base).eval()
    merged = merge([first, twin], WeightAverage(), base)
    merged.encoder.load_state_dict(first.encoder.state_dict())
    calibrated = realign(merged, [first, twin], images, EncoderCalibration(layers=ALL))
    assert state_of(calibrated.encoder) == state_of(merged.encoder)
    assert [row["kept"] for row in rows(calibrated)] == [0.0] * 4


def test_one_image_leaves_the_encoder_as_it_is(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    calibrated = realign(merged, experts, TinyData(1), EncoderCalibration())
    assert state_of(calibrated.encoder) == state_of(merged.encoder)
    assert rows(calibrated) == []


def test_two_images_a_dead_channel_and_constant_pictures_are_survived(
    merged: MultiTaskModel, experts: list[SingleTaskModel]
) -> None:
    for model in (merged, *experts):
        for block in model.encoder._timm.blocks:
            block.mlp.fc1.weight.data[3] = 0
            block.attn.proj.weight.data[5] = 0
    flat = TinyData(2)
    for sample in flat.samples:
        sample.image[:] = 0.5
    for images in (TinyData(2), flat):
        calibrated = realign(merged, experts, images, EncoderCalibration(layers=ALL))
        assert all(torch.isfinite(value).all() for value in calibrated.state_dict().values())
        assert all(sum(row["held_out"]) <= sum(row["held_out_before"]) for row in rows(calibrated))


def test_a_weight_draws_the_features_to_its_task(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    def explained(weights: dict[str, float]) -> float:
        calibrated = realign(merged, experts, images, EncoderCalibration(weights=weights))
        assert calibrated.merge is not None
        last = (calibrated.merge.alignment or {})["distances"]["depth"][-1]
        return float(last["after"]["explained_variance"])

    assert explained({"segmentation": 0}) > explained({}) > explained({"depth": 0})


@pytest.mark.usefixtures("tiny_checkpoints")
def test_a_calibrated_model_is_saved_and_read_as_it_is(
    merged: MultiTaskModel,
    experts: list[SingleTaskModel],
    images: TinyData,
    tmp_path: Path,
) -> None:
    calibrated = realign(merged, experts, images, EncoderCalibration())
    again = load(save(calibrated, tmp_path / "calibrated"))
    assert isinstance(again, MultiTaskModel)
    assert again.encoder_passes == 1
    assert state_of(again) == state_of(calibrated)
    assert again.merge is not None
    assert (again.merge.alignment or {})["method"] == "encoder-calibration"
    aligned = realign(again, experts, images, LinearSurgery(4))
    assert state_of(aligned.encoder) == state_of(calibrated.encoder)


def test_aligners_are_fitted_after_it_and_the_record_tells_of_both(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    calibrated = realign(merged, experts, images, EncoderCalibration())
    aligned = realign(calibrated, experts, images, LinearSurgery(4))
    assert calibrated.merge is not None
    assert aligned.merge is not None
    record, first = dict(aligned.merge.alignment or {}), dict(calibrated.merge.alignment or {})
    assert record["method"] == "encoder-calibration+surgery-stretched"
    assert record["before"] == first
    own = sum(p.numel() for p in aligned.aligners.parameters())
    assert record["trainable_parameters"] == first["trainable_parameters"] + own
    assert record["rank"] == 4
    with pytest.raises(SimoError, match="aligned already"):
        realign(aligned, experts, images, LinearSurgery(4))
    with pytest.raises(SimoError, match="aligned already"):
        realign(realign(merged, experts, images, LinearSurgery(4)), experts, images, EncoderCalibration())


def test_features_from_before_the_calibration_are_refused_after_it(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    features = capture_all(merged, {e.task.name: e for e in experts}, images)
    calibrated = realign(merged, experts, images, EncoderCalibration(), features)
    with pytest.raises(SimoError, match="those of another encoder"):
        realign(calibrated, experts, images, LinearSurgery(4), features)
    again = CalibrationFeatures(capture(calibrated.encoder, images), features.experts)
    aligned = realign(calibrated, experts, images, LinearSurgery(4), again)
    assert state_of(aligned) == state_of(realign(calibrated, experts, images, LinearSurgery(4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ("attn.v",)}, r"are of norm1, attn.qkv, .*; got attn.v"),
        ({"layers": ()}, "got none"),
        ({"ridge": 0.0}, "ridge must be positive"),
        ({"held_out": 1.0}, "between 0 and 1, got 1"),
        ({"prefix": -1.0}, "0 or more; got -1"),
        ({"weights": {"normals": 1.0}}, "unknown tasks normals; the tasks are segmentation, depth"),
        ({"weights": {"depth": 0, "segmentation": 0}}, "one at least above"),
    ],
)
def test_options_out_of_range_are_refused(
    merged: MultiTaskModel,
    experts: list[SingleTaskModel],
    images: TinyData,
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(SimoError, match=message):
        realign(merged, experts, images, EncoderCalibration(**options))


def test_blocks_without_such_a_layer_are_refused(images: TinyData) -> None:
    base = tiny_base(mlp_layer=_Mixer)
    pair = [tiny_expert(SEGMENTATION, base, 1), tiny_expert(DEPTH, base, 2)]
    with pytest.raises(SimoError, match=r"\(Block\) have no layer 'mlp.fc2' that can be fitted; give others of norm1"):
        realign(merge(pair, TaskArithmetic(0.3), base), pair, images, EncoderCalibration())


def test_layers_without_a_bias_are_refused(images: TinyData) -> None:
    base = tiny_base(qkv_bias=False)
    pair = [tiny_expert(SEGMENTATION, base, 1), tiny_expert(DEPTH, base, 2)]
    merged = merge(pair, TaskArithmetic(0.3), base)
    with pytest.raises(SimoError, match=r"attn.qkv of the encoder's blocks \(Block\) has no bias.* leave it out"):
        realign(merged, pair, images, EncoderCalibration(layers=("attn.qkv", "mlp.fc2")))
    assert realign(merged, pair, images, EncoderCalibration()).merge is not None


class _Mixer(torch.nn.Module):
    def __init__(self, in_features: int, **_: object) -> None:
        super().__init__()
        self.only = torch.nn.Linear(in_features, in_features)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.only(tokens)  # type: ignore[no-any-return]
