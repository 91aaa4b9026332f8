"""Surgery behind every block: what it solves, what held-out images keep of it, and that it undoes what it can."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from simo_merge.checkpoints import load, save
from simo_merge.errors import SimoError
from simo_merge.models import BlockChange, BlockChanges, Encoder, MultiTaskModel, SingleTaskModel
from simo_merge.models.aligners import LinearSurgeryTap
from simo_merge.realign import GradientSurgeryV2, SurgeryV2, realign
from simo_merge.realign.specific.walk import Here
from tests.tiny import TinyData, state_of

FIRST = 10  # of 12 images, 0.2 held out


def rows(model: MultiTaskModel) -> list[dict[str, Any]]:
    assert model.merge is not None
    return list((model.merge.alignment or {})["blocks"])


def pixels(images: TinyData, which: slice = slice(None)) -> Tensor:
    return torch.stack([sample.image for sample in images.samples[which]])


def streams(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """What each block of an encoder gives, float64."""
    found: list[Tensor] = []
    blocks = list(encoder.vit.get_submodule("blocks").children())
    handles = [block.register_forward_hook(lambda _, __, z: found.append(z.double())) for block in blocks]
    with torch.no_grad():
        encoder(images)
    for handle in handles:
        handle.remove()
    return found


def module(model: MultiTaskModel, task: str, index: int) -> Any:
    changes = model.changes(task)
    change = None if changes is None else changes.change(index)
    return None if change is None else change.behind.taps[0]  # type: ignore[union-attr]


def corrected_streams(model: MultiTaskModel, task: str, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What each block gives on the task's own stream, before and behind its correction, float64."""
    encoder = copy.deepcopy(model.encoder)
    found: list[tuple[Tensor, Tensor]] = []

    def correct(index: int) -> Any:
        def hook(_: object, __: object, z: Tensor) -> Tensor:
            own = module(model, task, index)
            after = z if own is None else torch.cat(own(z[:, 1:], z[:, :1])[::-1], dim=1)
            found.append((z.double(), after.double()))
            return after

        return hook

    for index, block in enumerate(encoder.vit.get_submodule("blocks").children()):
        block.register_forward_hook(correct(index))
    with torch.no_grad():
        encoder(images)
    return found


def least_squares(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Corrected tokens (n, N, C), one prefix token first: a ridge map of full rank, and offsets for either kind."""
    tokens = x.shape[1] - 1
    weights = torch.tensor([float(tokens)] + [1.0] * tokens, dtype=torch.float64).sqrt().repeat(len(x))[:, None]
    kinds = torch.zeros(len(x), tokens + 1, 2, dtype=torch.float64)
    kinds[:, 0, 0], kinds[:, 1:, 1] = 1.0, 1.0
    a, d, kinds = x.flatten(0, 1), (y - x).flatten(0, 1), kinds.flatten(0, 1)
    means = torch.linalg.lstsq(kinds, a).solution  # the mean of each kind
    scale = (weights * (a - kinds @ means)).square().sum(0).sqrt()
    penalty = torch.cat([torch.diag(scale * ridge**0.5), torch.zeros(len(scale), 2, dtype=torch.float64)], 1)
    design = torch.cat([weights * torch.cat([a, kinds], 1), penalty])
    found = torch.linalg.lstsq(design, torch.cat([weights * d, torch.zeros_like(penalty[:, : d.shape[1]])])).solution
    return x + (torch.cat([a, kinds], 1) @ found).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("index", [0, 2])
def test_a_block_is_corrected_by_least_squares_on_the_stream_that_those_before_left(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, index: int
) -> None:
    fitted = realign(merged, experts, images, SurgeryV2(rank=None, ridge=0.3, held_out=None))
    expert = streams(experts[1].encoder, pixels(images))[index]
    plain, corrected = corrected_streams(fitted, "depth", pixels(images))[index]
    torch.testing.assert_close(corrected, least_squares(plain, expert, 0.3), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(corrected, plain, atol=1e-2)


def test_a_low_rank_map_is_the_best_of_its_rank(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    fitted = realign(merged, experts, images, SurgeryV2(3, 0.3, held_out=None))
    x, y = streams(merged.encoder, pixels(images))[0], streams(experts[1].encoder, pixels(images))[0]
    own = module(fitted, "depth", 0)
    assert isinstance(own, LinearSurgeryTap)
    assert own.down.weight.shape == (3, 48)

    def centred(z: Tensor) -> Tensor:
        return torch.cat([z[:, :1] - z[:, :1].mean(0), z[:, 1:] - z[:, 1:].mean((0, 1))], 1)

    # A prefix token counts for the six patches; the map of full rank is that of ridge regression.
    weights = torch.tensor([6.0] + [1.0] * 6, dtype=torch.float64)[:, None]
    a, d = centred(x), centred(y - x)
    gram, cross = ((weights * a).flatten(0, 1).T @ z.flatten(0, 1) for z in (a, d))
    penalised = gram + 0.3 * torch.diag(gram.diagonal())
    whole = torch.linalg.solve(penalised, cross).T
    # The best of rank 3, in units of the expert's deviation: its leading singular directions in this metric.
    scale = y[:, 1:].flatten(0, 1).std(0, correction=0)
    scale = scale.clamp_min(0.1 * scale.median())
    root = torch.linalg.cholesky(penalised)
    u, s, v = torch.linalg.svd((whole / scale[:, None]) @ root)
    best = scale[:, None] * (u[:, :3] * s[:3]) @ v[:3] @ torch.linalg.inv(root)
    torch.testing.assert_close(own.up.weight.double() @ own.down.weight.double(), best, rtol=1e-3, atol=1e-4)


class Spoilt(SurgeryV2):
    """Surgery whose module behind the second block is far off."""

    def _solve(self, here: Here) -> BlockChange:
        change = super()._solve(here)
        if here.index == 1:
            change.get_parameter("behind.taps.0.patch_offset").add_(10.0)
        return change


@pytest.mark.parametrize(
    "method", [SurgeryV2(rank=8), Spoilt(rank=8), GradientSurgeryV2(rank=8, steps=15, lr=5e-3)], ids=lambda m: type(m)
)
def test_what_is_kept_never_makes_held_out_features_worse_and_the_rest_is_left_out(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, method: SurgeryV2
) -> None:
    fitted = realign(merged, experts, images, method)
    held = pixels(images, slice(FIRST, None))
    assert [(row["task"], row["block"]) for row in rows(fitted)] == [
        (e.task.name, b) for e in experts for b in range(4)
    ]
    for expert in experts:
        task = expert.task.name
        wanted = streams(expert.encoder, held)
        whole = streams(expert.encoder, pixels(images, slice(0, FIRST)))
        found = corrected_streams(fitted, task, held)
        for row in rows(fitted):
            if row["task"] != task:
                continue
            index = row["block"]
            scale = whole[index][:, 1:].flatten(0, 1).std(0, correction=0)
            scale = scale.clamp_min(0.1 * scale.median())
            weights = torch.tensor([6.0] + [1.0] * 6, dtype=torch.float64)[:, None] / 12

            def error(z: Tensor, y: Tensor = wanted[index], w: Tensor = weights, s: Tensor = scale) -> float:
                return float((w * ((z - y) / s).square()).mean(2).sum(1).mean())

            before, after = (error(z) for z in found[index])
            assert row["kept"] == float(module(fitted, task, index) is not None)
            assert row["held_out"][0] <= row["held_out_before"][0]
            assert row["held_out_before"][0] == pytest.approx(before, rel=1e-3)
            assert row["held_out"][0] == pytest.approx(after, rel=1e-3)
    assert any(row["kept"] for row in rows(fitted))
    if isinstance(method, Spoilt):
        assert [row["kept"] for row in rows(fitted) if row["block"] == 1] == [0, 0]
        assert any(row["kept"] for row in rows(fitted) if row["block"] > 1)


def test_a_block_that_held_out_images_speak_against_stays_shared(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    # An expert that is the merged encoder but for its last block: before that there is nothing to correct.
    same = copy.deepcopy(merged.encoder)
    with torch.no_grad():
        same.vit.get_submodule("blocks.3").mlp.fc2.bias.add_(0.5)  # type: ignore[operator,union-attr]
    experts[1].encoder = same
    fitted = realign(merged, experts, images, SurgeryV2(rank=4))
    changes = fitted.changes("depth")
    assert changes is not None
    assert changes.indices == (3,)
    with torch.inference_mode():
        taps = fitted.taps(pixels(images), ["depth"])["depth"]
        torch.testing.assert_close(taps.maps[1], same(pixels(images)).maps[1], rtol=1e-4, atol=1e-4)


def test_features_come_nearer_and_the_record_says_by_how_much_for_each_task(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    fitted = realign(merged, experts, images, SurgeryV2(rank=None, ridge=0.01, held_out=None))
    assert fitted.merge is not None
    for taps in (fitted.merge.alignment or {})["distances"].values():
        for tap in taps:
            assert tap["after"]["explained_variance"] > tap["before"]["explained_variance"]
    assert fitted.encoder_passes == 2


@pytest.mark.parametrize("start", [2, -2])
def test_blocks_before_the_first_that_may_differ_are_left_and_shared(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, start: int
) -> None:
    fitted = realign(merged, experts, images, SurgeryV2(rank=4, from_block=start, held_out=None))
    assert {c.indices for c in (fitted.changes("depth"), fitted.changes("segmentation")) if c} == {(2, 3)}
    assert fitted.encoder_passes == 1.5
    assert state_of(fitted.encoder) == state_of(merged.encoder)
    expert = streams(experts[1].encoder, pixels(images))[2]
    whole = realign(merged, experts, images, SurgeryV2(rank=None, ridge=0.3, from_block=start, held_out=None))
    plain, corrected = corrected_streams(whole, "depth", pixels(images))[2]
    torch.testing.assert_close(plain, streams(merged.encoder, pixels(images))[2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(corrected, least_squares(plain, expert, 0.3), rtol=1e-4, atol=1e-4)


def test_gradients_bring_the_streams_nearer_behind_every_block_and_leave_the_encoder_alone(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    before = state_of(merged, *experts)
    method = GradientSurgeryV2(rank=8, steps=30, lr=1e-2, held_out=None)
    fitted = realign(merged, experts, images, method)
    assert state_of(merged, *experts) == before
    assert state_of(fitted.encoder) == state_of(merged.encoder)
    assert all(parameter.requires_grad for parameter in fitted.parameters())
    far = sum(
        float((x - y).abs().mean())
        for x, y in zip(
            streams(merged.encoder, pixels(images)), streams(experts[1].encoder, pixels(images)), strict=True
        )
    )
    near = sum(
        float((x - y).abs().mean())
        for (_, x), y in zip(
            corrected_streams(fitted, "depth", pixels(images)), streams(experts[1].encoder, pixels(images)), strict=True
        )
    )
    assert near < 0.9 * far


def test_a_seed_decides_what_gradients_find(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    method = GradientSurgeryV2(rank=2, steps=2, held_out=None)
    first, again, other = (state_of(realign(merged, experts, images, method, seed=seed)) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.usefixtures("tiny_checkpoints")
def test_a_checkpoint_holds_the_shared_weights_once_and_predicts_the_same(
    merged: MultiTaskModel,
    experts: list[SingleTaskModel],
    images: TinyData,
    tmp_path: Path,
) -> None:
    fitted = realign(merged, experts, images, SurgeryV2(rank=4))
    plain, own = save(merged, tmp_path / "merged"), save(fitted, tmp_path / "fitted")
    again = load(own)
    assert isinstance(again, MultiTaskModel)
    assert again.encoder_passes == fitted.encoder_passes
    assert state_of(again) == state_of(fitted)
    with torch.inference_mode():
        ours, theirs = again(pixels(images)), fitted(pixels(images))
    assert all(torch.equal(ours[task], theirs[task]) for task in ours)
    sizes = [(path / "model.safetensors").stat().st_size for path in (plain, own)]
    assert sizes[1] - sizes[0] < 4 * 8 * (4 * 2 * 48 + 2 * 48) * 1.5  # eight modules, and the names of their tensors
    card = (own / "README.md").read_text(encoding="utf-8")
    assert f"| encoder passes for all tasks | {fitted.encoder_passes:.3g} |" in card
    firsts = {task: min(cast(BlockChanges, fitted.changes(task)).indices) for task in fitted.tasks}
    assert ", ".join(f"{task} from block {first} on" for task, first in firsts.items()) in card


@pytest.mark.parametrize("constant", [False, True])
def test_one_image_and_channels_that_never_vary_leave_everything_finite(
    merged: MultiTaskModel, experts: list[SingleTaskModel], constant: bool
) -> None:
    if constant:
        with torch.no_grad():
            for encoder in (merged.encoder, *(e.encoder for e in experts)):
                for index in range(4):
                    encoder.vit.get_submodule(f"blocks.{index}.mlp.fc2").weight[5] = 0.0  # type: ignore[index]
                    encoder.vit.get_submodule(f"blocks.{index}.attn.proj").weight[5] = 0.0  # type: ignore[index]
                encoder.get_parameter("vit.patch_embed.proj.weight")[5] = 0.0
                encoder.get_parameter("vit.pos_embed")[..., 5] = 0.0
    for images in (TinyData(1), TinyData(4)):
        for method in (SurgeryV2(), SurgeryV2(held_out=None), GradientSurgeryV2(steps=2, held_out=None)):
            fitted = realign(merged, experts, images, method)
            assert all(torch.isfinite(value).all() for value in fitted.state_dict().values())
            with torch.inference_mode():
                assert all(torch.isfinite(p).all() for p in fitted(pixels(images)).values())
        if len(images) == 1:
            assert realign(merged, experts, images, SurgeryV2()).encoder_passes == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank of surgery must be 1 or more, got 0"),
        ({"rank": 2.5}, r"a whole number or None as rank, got 2\.5"),
        ({"rank": "auto"}, "a whole number or None as rank, got 'auto'"),
        ({"from_block": "last"}, "takes a whole number as from_block, got 'last'"),
        ({"ridge": 0.0}, "ridge must be positive"),
        ({"held_out": 1.0}, "share of the calibration images between 0 and 1, got 1.0"),
        ({"prefix": -1.0}, "how many patches a prefix token counts for"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        SurgeryV2(**options)


@pytest.mark.parametrize("options", [{"steps": 0}, {"lr": 0.0}, {"lr": float("nan")}])
def test_steps_and_rates_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SimoError, match="takes 1 or more steps and a positive lr"):
        GradientSurgeryV2(**options)
    with pytest.raises(SimoError, match=r"a whole number as steps, got 2\.5"):
        GradientSurgeryV2(steps=cast(int, 2.5))


def test_a_first_block_that_there_is_not_is_refused(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    for start in (4, -5):
        with pytest.raises(SimoError, match=f"from_block {start} is out of range: .* read blocks 0 to 3"):
            realign(merged, experts, images, SurgeryV2(from_block=start))
    with pytest.raises(SimoError, match=r"1 or more steps and a positive lr, got 0 and 0\.001"):
        GradientSurgeryV2(steps=0)
