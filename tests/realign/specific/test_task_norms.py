"""LayerNorms for each task: they undo experts that differ in nothing else, and their moments are the experts'."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from simo_merge.checkpoints import load, save
from simo_merge.errors import SimoError
from simo_merge.merging import TaskArithmetic, WeightAverage, merge
from simo_merge.models import BaseRecord, Encoder, MultiTaskModel, SingleTaskModel, build_decoder
from simo_merge.realign import TaskNorms, realign
from simo_merge.realign.specific.channels import ChannelSums
from simo_merge.weights import Base, fingerprint
from simo_merge.weights.architecture import create_vit
from tests.realign.specific.test_surgery_v2 import pixels, rows
from tests.tiny import DEPTH, NAME, SEGMENTATION, SIZE, TinyData, state_of, tiny_base, tiny_expert


def encoder_with_other_norms(encoder: Encoder, seed: int) -> Encoder:
    """The same encoder with another scale (of the same sign) and shift in every LayerNorm of its blocks."""
    found, generator = copy.deepcopy(encoder), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in found.vit.get_submodule("blocks").modules():
            if isinstance(module, nn.LayerNorm):
                module.weight *= 1 + 0.5 * torch.rand(module.weight.shape, generator=generator)
                module.bias += 0.3 * torch.randn(module.bias.shape, generator=generator)
    return found


@pytest.fixture
def base() -> Base:
    """A base of which some LayerNorm weights are negative."""
    base = tiny_base()
    torch.manual_seed(7)
    with torch.no_grad():
        for module in base.vit.get_submodule("blocks").modules():
            if isinstance(module, nn.LayerNorm):
                module.weight *= torch.where(torch.rand(module.weight.shape) < 0.3, -1.0, 1.0)
    return replace(base, sha256=fingerprint(base.vit.state_dict()))


@pytest.fixture
def norm_experts(base: Base) -> list[SingleTaskModel]:
    """Experts that differ in the LayerNorms alone."""
    experts = [tiny_expert(task, base, shift=0.0) for task in (SEGMENTATION, DEPTH)]
    for seed, expert in enumerate(experts):
        expert.encoder = encoder_with_other_norms(expert.encoder, seed)
    return experts


@pytest.mark.parametrize("held_out", [None, 0.2])
def test_experts_that_differ_in_their_layer_norms_alone_are_given_back(
    base: Base, norm_experts: list[SingleTaskModel], images: TinyData, held_out: float | None
) -> None:
    merged = merge(norm_experts, WeightAverage(), base)
    fitted = realign(merged, norm_experts, images, TaskNorms(held_out=held_out))
    fresh = pixels(TinyData(4, seed=5))
    with torch.inference_mode():
        for expert in norm_experts:
            task = expert.task.name
            wanted, before = expert.encoder(fresh), merged.encoder(fresh)
            found = fitted.taps(fresh, [task])[task]
            for tap in range(2):
                far = (before.maps[tap] - wanted.maps[tap]).abs().max()
                assert far > 0.01
                assert (found.maps[tap] - wanted.maps[tap]).abs().max() < 1e-3 * far
                assert (found.prefix[tap] - wanted.prefix[tap]).abs().max() < 1e-3 * far
            torch.testing.assert_close(fitted(fresh)[task], expert(fresh), rtol=1e-3, atol=1e-3)
            changes = fitted.changes(task)
            assert changes is not None
            for index in range(4):
                for name in ("norm1", "norm2"):
                    ours = changes.change(index).norm(name)  # type: ignore[union-attr]
                    theirs = expert.encoder.vit.get_submodule(f"blocks.{index}.{name}")
                    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-3, atol=1e-3)
    assert fitted.encoder_passes == 2
    assert state_of(fitted.encoder) == state_of(merged.encoder)


def norm_outputs(vit: nn.Module, name: str, images: Tensor, encoder: Encoder) -> Tensor:
    found: list[Tensor] = []
    handle = vit.get_submodule(name).register_forward_hook(lambda _, __, z: found.append(z.double()))
    with torch.no_grad():
        encoder(images)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("prefix", [None, 2.0])
def test_every_layer_norm_gives_the_experts_means_and_deviations_on_the_tasks_own_stream(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, prefix: float | None
) -> None:
    fitted = realign(merged, experts, images, TaskNorms(held_out=None, prefix=prefix))
    changes = fitted.changes("depth")
    assert changes is not None
    slow = copy.deepcopy(merged.encoder)  # with the norms written into it
    for index in changes.indices:
        for name in ("norm1", "norm2"):
            own = changes.change(index).norm(name)  # type: ignore[union-attr]
            slow.vit.get_submodule(f"blocks.{index}.{name}").load_state_dict(own.state_dict())
    counts = 6.0 if prefix is None else prefix
    for index in range(4):
        for name in ("norm1", "norm2"):
            x, y = (
                norm_outputs(e.vit, f"blocks.{index}.{name}", pixels(images), e) for e in (slow, experts[1].encoder)
            )
            for values in ("mean", "spread"):
                ours, theirs = (
                    (counts * z[:, 0].mean(0) + 6 * z[:, 1:].mean((0, 1))) / (counts + 6)
                    if values == "mean"
                    else (counts * z[:, 0].var(0, correction=0) + 6 * z[:, 1:].flatten(0, 1).var(0, correction=0))
                    for z in (x, y)
                )
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=f"{index} {name} {values}")


def test_what_is_kept_brings_held_out_streams_nearer(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    found = rows(realign(merged, experts, images, TaskNorms()))
    assert len(found) == 8
    for row in found:
        assert row["held_out"][0] <= row["held_out_before"][0]
        assert (row["held_out"][0] < row["held_out_before"][0]) == (row["kept"] == 1)


def test_norms_inside_the_attention_are_fitted_too(images: TinyData) -> None:
    torch.manual_seed(0)
    vit = create_vit(NAME, SIZE, depth=2, embed_dim=48, num_heads=3, qk_norm=True)
    encoder, record = Encoder(vit, NAME, (1,)), BaseRecord(NAME, "timm:tiny", "0" * 64)
    experts = []
    for seed, task in enumerate((SEGMENTATION, DEPTH)):
        own = encoder_with_other_norms(encoder, seed)
        experts.append(SingleTaskModel(own, build_decoder("linear", own, task.out_channels), task, record).eval())
    model = MultiTaskModel(
        encoder, {e.task.name: e.decoder for e in experts}, {e.task.name: e.task for e in experts}
    ).eval()  # type: ignore[arg-type]
    fitted = realign(model, experts, images, TaskNorms(held_out=None))
    change = fitted.changes("depth").change(0)  # type: ignore[union-attr]
    assert change is not None
    assert change.names == ("norm1", "attn.q_norm", "attn.k_norm", "norm2")
    with torch.inference_mode():
        found, wanted = fitted.taps(pixels(images), ["depth"])["depth"], experts[1].encoder(pixels(images))
    torch.testing.assert_close(found.maps[0], wanted.maps[0], rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("tiny_checkpoints")
def test_saved_and_read_they_are_as_they_were(
    merged: MultiTaskModel,
    experts: list[SingleTaskModel],
    images: TinyData,
    tmp_path: Path,
) -> None:
    fitted = realign(merged, experts, images, TaskNorms(from_block=1, held_out=None))
    again = load(save(fitted, tmp_path / "fitted"))
    assert isinstance(again, MultiTaskModel)
    assert again.encoder_passes == 1.75
    assert "| encoder passes for all tasks | 1.75 |" in (tmp_path / "fitted" / "README.md").read_text(encoding="utf-8")
    with torch.inference_mode():
        ours, theirs = again(pixels(images)), fitted(pixels(images))
    assert all(torch.equal(ours[task], theirs[task]) for task in ours)


@pytest.mark.parametrize("count", [1, 3])
def test_one_image_and_channels_that_never_vary_leave_everything_finite(count: int) -> None:
    base = tiny_base()
    experts = [tiny_expert(task, base, seed) for seed, task in enumerate((SEGMENTATION, DEPTH))]
    with torch.no_grad():
        for index in range(4):
            base.vit.get_submodule(f"blocks.{index}.norm1").weight[5] = 0.0  # type: ignore[index]
            for expert in experts:
                expert.encoder.vit.get_submodule(f"blocks.{index}.norm1").weight[5] = 0.0  # type: ignore[index]
    merged = merge(experts, TaskArithmetic(0.3), base)
    for method in (TaskNorms(), TaskNorms(held_out=None), TaskNorms(held_out=None, prefix=0.0)):
        fitted = realign(merged, experts, TinyData(count), method)
        assert all(torch.isfinite(value).all() for value in fitted.state_dict().values())
        with torch.inference_mode():
            assert all(torch.isfinite(p).all() for p in fitted(torch.rand(1, 3, *SIZE)).values())


def test_sums_of_parts_are_those_of_the_whole_and_a_constant_has_no_deviation() -> None:
    values = torch.randn(5, 3, 7, 4) * 10 + 1000  # images, heads, tokens of which two are prefix, channels
    values[..., 3] = 0.1
    parts, whole = ChannelSums(2), ChannelSums(2)
    whole.add(values)
    for part in values.split(2):
        parts.add(part)
    wide = values.double()
    groups = [wide[:, :, 2:].reshape(-1, 4), wide[:, :, 0].reshape(-1, 4), wide[:, :, 1].reshape(-1, 4)]
    masses = [len(groups[0]), 3.0 * len(groups[1]), 3.0 * len(groups[2])]
    mean = sum(m * g.mean(0) for m, g in zip(masses, groups, strict=True)) / sum(masses)
    variance = sum(m * g.var(0, correction=0) for m, g in zip(masses, groups, strict=True)) / sum(masses)
    for found in (parts.mean_and_deviation(3.0), whole.mean_and_deviation(3.0)):
        torch.testing.assert_close(found[0], mean)
        torch.testing.assert_close(found[1][:3], variance.sqrt()[:3], rtol=1e-6, atol=0)  # type: ignore[union-attr]
        assert found[1][3] == 0


def test_blocks_without_layer_norms_are_refused(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    for encoder in (merged.encoder, *(e.encoder for e in experts)):
        for index in range(4):
            for name in ("norm1", "norm2"):
                setattr(encoder.vit.get_submodule(f"blocks.{index}"), name, nn.Identity())
    with pytest.raises(SimoError, match=r"\(Block\) have no LayerNorm with a scale and a shift; use surgery-v2"):
        realign(merged, experts, images, TaskNorms())
