"""Merging experts: the encoder follows the formula, decoders travel untouched, and what cannot be merged is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.merging import (
    Lot,
    Magic,
    MergeMethod,
    TaskArithmetic,
    WeightAverage,
    find_base,
    merge,
    merge_method,
    merge_states,
)
from simo_merge.models import BaseRecord, SingleTaskModel
from simo_merge.weights import Base, fingerprint
from tests.tiny import DEPTH, NAME, NORMALS, SEGMENTATION, TAPS, TinyData, state_of, tiny_base, tiny_expert


@pytest.fixture
def base() -> Base:
    return tiny_base()


@pytest.fixture
def experts(base: Base) -> list[SingleTaskModel]:
    return [tiny_expert(task, base, seed) for seed, task in enumerate((SEGMENTATION, DEPTH, NORMALS))]


def recorded_as(expert: SingleTaskModel, base: BaseRecord | None) -> SingleTaskModel:
    expert.base = base
    return expert


# -- what comes out ---------------------------------------------------------------------------------------------


def test_every_parameter_of_the_encoder_follows_the_formula(base: Base, experts: list[SingleTaskModel]) -> None:
    merged = merge(experts, TaskArithmetic(0.4), base).encoder.vit.state_dict()
    for name, origin in base.vit.state_dict().items():
        vectors = [e.encoder.vit.state_dict()[name].double() - origin.double() for e in experts]
        assert torch.allclose(merged[name].double(), origin.double() + 0.4 * sum(vectors), atol=1e-6), name


def test_coefficient_0_gives_the_base_encoder_bit_for_bit(base: Base, experts: list[SingleTaskModel]) -> None:
    merged = merge(experts, TaskArithmetic(0.0), base)
    assert fingerprint(merged.encoder.vit.state_dict()) == base.sha256


def test_equal_experts_average_to_a_model_that_predicts_as_they_do(base: Base) -> None:
    same = [tiny_expert(DEPTH, base, 1), tiny_expert(NORMALS, base, 1)]
    merged = merge(same, WeightAverage(), base)
    images = torch.rand(2, 3, 32, 48)
    with torch.inference_mode():
        predictions = merged(images)
        for expert in same:
            assert torch.allclose(predictions[expert.task.name], expert(images), atol=1e-4)


def test_decoders_travel_untouched_and_are_copies(base: Base, experts: list[SingleTaskModel]) -> None:
    experts[0].decoder.get_buffer("norm.running_mean").add_(3.0)
    before = state_of(*experts)
    merged = merge(experts, TaskArithmetic(0.3), base)
    for expert in experts:
        assert state_of(merged.decoders[expert.task.name]) == state_of(expert.decoder)
    for parameter in merged.parameters():
        parameter.data.zero_()
    assert state_of(*experts) == before


def test_the_merged_model_is_ready_to_predict_in_one_encoder_pass(base: Base, experts: list[SingleTaskModel]) -> None:
    for expert in experts:
        expert.train()
    merged = merge(experts, WeightAverage(), base)
    assert not any(module.training for module in merged.modules())
    assert merged.encoder_passes == 1
    assert list(merged.tasks) == ["segmentation", "depth", "normals"]
    assert {n: tuple(p.shape) for n, p in merged(torch.rand(1, 3, 32, 48)).items()} == {
        "segmentation": (1, 3, 32, 48),
        "depth": (1, 1, 32, 48),
        "normals": (1, 3, 32, 48),
    }


def test_the_record_says_how_the_model_was_made(base: Base, experts: list[SingleTaskModel]) -> None:
    experts[1].provenance["path"] = "runs/depth"
    merged = merge(experts, TaskArithmetic(0.4), base)
    assert merged.base == BaseRecord(base.name, base.source, base.sha256)
    assert merged.merge is not None
    assert (merged.merge.method, merged.merge.parameters) == ("task-arithmetic", {"scale": 0.4})
    assert merged.merge.experts["depth"] == {"path": "runs/depth", "sha256": fingerprint(experts[1].state_dict())}
    assert merged.merge.experts["normals"]["path"] is None
    assert merged.merge.alignment is None


def test_integer_buffers_are_the_bases() -> None:
    base = {"weight": torch.tensor([1.0]), "steps": torch.tensor(7)}
    experts = [{"weight": torch.tensor([3.0]), "steps": torch.tensor(100 + i)} for i in range(2)]
    merged = merge_states(base, experts, WeightAverage()).shared
    assert merged["steps"].dtype == torch.int64
    assert merged["steps"] == 7
    merged["steps"].add_(1)
    assert base["steps"] == 7


def test_half_precision_is_summed_in_float32_and_stored_as_the_base_is() -> None:
    base = {"weight": torch.tensor([1000.0]).half()}
    experts = [{"weight": torch.tensor([1000.5 + 0.5 * i]).half()} for i in range(4)]
    merged = merge_states(base, experts, WeightAverage()).shared["weight"]
    assert merged.dtype == torch.float16
    assert merged == torch.tensor(1001.25).half()


def test_task_arithmetic_with_coefficient_0_is_a_float64_base_bit_for_bit() -> None:
    base = {"weight": torch.tensor([0.1, 1 / 3], dtype=torch.float64)}
    merged = merge_states(base, [{"weight": base["weight"] + 1}], TaskArithmetic(0.0)).shared["weight"]
    assert torch.equal(merged, base["weight"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", [TaskArithmetic(0.4), Lot(), Magic()], ids=lambda m: m.name)
def test_experts_on_a_gpu_merge_as_on_the_cpu_and_stay_there(
    base: Base, experts: list[SingleTaskModel], method: MergeMethod
) -> None:
    expected = merge(experts, method, base, TinyData(3), "cpu")
    found = merge([expert.cuda() for expert in experts], method, base, TinyData(3), "cpu")
    assert state_of(found) == state_of(expected)
    assert all(p.is_cuda for expert in experts for p in expert.parameters())


# -- what is refused --------------------------------------------------------------------------------------------


def test_a_single_expert_is_refused(base: Base, experts: list[SingleTaskModel]) -> None:
    with pytest.raises(SimoError, match="at least two experts, got 1"):
        merge(experts[:1], WeightAverage(), base)


def test_two_experts_for_one_task_are_refused(base: Base, experts: list[SingleTaskModel]) -> None:
    with pytest.raises(SimoError, match="same task: depth"):
        merge([*experts, tiny_expert(DEPTH, base, 9)], WeightAverage(), base)


def test_experts_of_different_encoders_are_refused_and_both_named(base: Base, experts: list[SingleTaskModel]) -> None:
    other = tiny_expert(NORMALS, replace(base, name="deit_tiny_patch16_224"))
    with pytest.raises(SimoError, match=f"segmentation and normals .*{NAME} and deit_tiny_patch16_224"):
        merge([experts[0], other], WeightAverage(), base)


def test_experts_whose_decoders_read_different_blocks_are_refused_and_both_named(
    base: Base, experts: list[SingleTaskModel]
) -> None:
    other = tiny_expert(NORMALS, base, taps=(0, 3))
    with pytest.raises(SimoError, match=r"segmentation and normals .*\(1, 3\) and \(0, 3\)"):
        merge([experts[0], other], WeightAverage(), base)


def test_experts_of_different_resolutions_are_refused_and_both_shapes_named(
    base: Base, experts: list[SingleTaskModel]
) -> None:
    other = tiny_expert(NORMALS, tiny_base(image_size=(64, 64)))
    with pytest.raises(SimoError, match=r"images of 32x48, .* for 64x64 .*--resample-pos-embed"):
        merge([experts[0], other], WeightAverage(), base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"embed_dim": 96}, "different shapes, .*they are different encoders"), ({"depth": 5}, r"tensors: vit\.blocks")],
)
def test_experts_of_one_name_but_different_architectures_are_refused(
    base: Base, experts: list[SingleTaskModel], changes: dict[str, int], message: str
) -> None:
    with pytest.raises(SimoError, match=message):
        merge([experts[0], tiny_expert(NORMALS, tiny_base(**changes))], WeightAverage(), base)


def test_experts_of_different_bases_are_refused_and_both_named(base: Base, experts: list[SingleTaskModel]) -> None:
    elsewhere = replace(tiny_base(seed=1), source="file:other.safetensors")
    other = tiny_expert(NORMALS, elsewhere)
    with pytest.raises(SimoError, match="segmentation and normals come from different bases") as refusal:
        merge([experts[0], other], WeightAverage(), base)
    for part in ("timm:tiny", base.sha256[:12], "file:other.safetensors", elsewhere.sha256[:12]):
        assert part in str(refusal.value)


def test_different_bases_are_found_behind_an_expert_that_records_none(
    base: Base, experts: list[SingleTaskModel]
) -> None:
    experts[0].base = None
    other = tiny_expert(NORMALS, tiny_base(seed=1))
    with pytest.raises(SimoError, match="depth and normals come from different bases"):
        merge([experts[0], experts[1], other], WeightAverage(), base)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_refused_by_expert_and_tensor(
    base: Base, experts: list[SingleTaskModel], value: float
) -> None:
    experts[1].encoder.get_parameter("vit.blocks.2.mlp.fc1.bias").data[3] = value
    with pytest.raises(SimoError, match=r"encoder of depth holds NaN or infinity in blocks\.2\.mlp\.fc1\.bias"):
        merge(experts, WeightAverage(), base)


def test_a_base_that_the_experts_did_not_come_from_is_refused_and_both_named(experts: list[SingleTaskModel]) -> None:
    wrong = replace(tiny_base(seed=1), source="random")
    with pytest.raises(SimoError, match=f"random, {wrong.sha256[:12]}.*timm:tiny, {experts[0].base.sha256[:12]}"):  # type: ignore[union-attr]
        merge(experts, WeightAverage(), wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_base(image_size=(64, 64)), "expert for segmentation .* 32x48, the base for 64x64"),
        (lambda: tiny_base(depth=5), r"different tensors: blocks\.4"),
    ],
)
def test_a_base_of_another_shape_is_refused_for_experts_that_record_none(
    experts: list[SingleTaskModel], make: Callable[[], Base], message: str
) -> None:
    unrecorded = [recorded_as(expert, None) for expert in experts]
    with pytest.raises(SimoError, match=message):
        merge(unrecorded, WeightAverage(), make())


# -- where the base comes from ----------------------------------------------------------------------------------


def test_experts_that_record_no_base_merge_when_it_is_given(base: Base, experts: list[SingleTaskModel]) -> None:
    recorded = merge(experts, TaskArithmetic(0.3), base)
    unrecorded = merge([recorded_as(copy.deepcopy(e), None) for e in experts], TaskArithmetic(0.3), base)
    assert state_of(recorded) == state_of(unrecorded)


def test_a_base_that_only_the_caller_knows_must_be_given(experts: list[SingleTaskModel]) -> None:
    record = experts[0].base
    assert record is not None
    with pytest.raises(SimoError, match=r"local file \(weights\.safetensors, .*give that file"):
        find_base([recorded_as(e, replace(record, source="file:weights.safetensors")) for e in experts])


def test_experts_that_record_no_base_at_all_ask_for_it(experts: list[SingleTaskModel]) -> None:
    with pytest.raises(SimoError, match=r"no expert records the base .*give the base"):
        merge([recorded_as(expert, None) for expert in experts], WeightAverage())


def test_the_taps_of_the_experts_are_kept(base: Base, experts: list[SingleTaskModel]) -> None:
    assert merge(experts, WeightAverage(), base).encoder.taps == TAPS


@pytest.mark.parametrize("method", ["ties", TaskArithmetic])
def test_what_is_no_method_is_refused(base: Base, experts: list[SingleTaskModel], method: object) -> None:
    with pytest.raises(SimoError, match="expected a merge method such as"):
        merge(experts, method, base)  # type: ignore[arg-type]


def test_what_is_no_expert_is_refused(base: Base) -> None:
    with pytest.raises(SimoError, match="expected single-task models to merge, got str, str; load checkpoints first"):
        merge(["runs/seg", "runs/depth"], WeightAverage(), base)  # type: ignore[list-item]


def test_a_switch_is_true_or_false() -> None:
    with pytest.raises(SimoError, match="clamp of adamerging is true or false, got 'maybe'"):
        merge_method("adamerging", {"clamp": "maybe"})
