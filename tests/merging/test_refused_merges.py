"""Files that do not merge are refused by name, all at once, and nothing is half written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from simo_merge.checkpoints import save
from simo_merge.errors import SimoError
from simo_merge.merging import (
    DataMergeMethod,
    MergeMethod,
    Parameter,
    TaskArithmetic,
    WeightAverage,
    merge_states,
)
from simo_merge.merging.files import merge_files
from simo_merge.merging.method import MergeData
from tests.merging.file_states import Centred, Own, State, identical, saved
from tests.tiny import DEPTH, NORMALS, tiny_base, tiny_expert


def refusal(tmp_path: Path, states: list[State], **options: Any) -> str:
    """What merging these says; nothing may have been written."""
    base, *experts = saved(tmp_path, states)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SimoError) as refused:
        merge_files(base, experts, options.pop("method", TaskArithmetic()), tmp_path / "out.safetensors", **options)
    assert sorted(tmp_path.rglob("*")) == before
    return str(refused.value)


def test_every_problem_of_every_expert_is_in_one_message(tmp_path: Path, states: list[State]) -> None:
    del states[1]["norm.bias"], states[1]["blocks.0.norm1.bias"]
    states[2]["head.weight"] = torch.zeros(2, 2)
    states[2]["norm.weight"] = torch.zeros(3)
    states[3]["steps"] = torch.tensor(1.5)
    said = refusal(tmp_path, states)
    for part in (
        "seg.safetensors: 2 tensors missing: ",
        "norm.bias",
        "blocks.0.norm1.bias",
        "depth.safetensors: 1 tensors that the base does not have: head.weight",
        "1 tensors of another shape: norm.weight (3,) instead of (48,)",
        "normals.safetensors: 1 tensors of another kind: steps torch.float32 instead of torch.int64",
        "--skip",
    ):
        assert part in said


def test_what_is_skipped_is_neither_compared_nor_written(tmp_path: Path, states: list[State]) -> None:
    states[2]["head.weight"] = torch.zeros(2, 2)
    base, *experts = saved(tmp_path, states)
    merge_files(base, experts, TaskArithmetic(), tmp_path / "out.safetensors", skip=["head.*", "norm.*"])
    kept = {n: t for n, t in states[0].items() if not n.startswith("norm.")}
    assert load_file(tmp_path / "out.safetensors").keys() == kept.keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", [TaskArithmetic(0.0), Centred()])
def test_broken_weights_are_named_and_nothing_is_written(
    tmp_path: Path, states: list[State], value: float, method: MergeMethod
) -> None:
    states[2]["blocks.2.mlp.fc1.bias"][3] = value
    said = refusal(tmp_path, states, method=method)
    assert "depth.safetensors holds NaN or infinity in blocks.2.mlp.fc1.bias" in said


def test_values_whose_sum_overflows_are_not_taken_for_infinity(tmp_path: Path, states: list[State]) -> None:
    for state in states:
        state["norm.bias"] = torch.full_like(state["norm.bias"], 3e38)
    base, *experts = saved(tmp_path, states)
    merge_files(base, experts, WeightAverage(), tmp_path / "out.safetensors")
    assert torch.equal(load_file(tmp_path / "out.safetensors")["norm.bias"], states[0]["norm.bias"])


@pytest.mark.parametrize(("dtype", "base"), [("float16", torch.float32), (None, torch.float16)])
def test_values_that_the_output_cannot_hold_are_named_and_nothing_is_written(
    tmp_path: Path, states: list[State], dtype: str | None, base: torch.dtype
) -> None:
    for state, value in zip(states, (59392.0, 65024.0, 65024.0, 59392.0), strict=True):
        state["norm.bias"] = torch.full_like(state["norm.bias"], value).to(base)
    said = refusal(tmp_path, states, method=TaskArithmetic(1.5), dtype=dtype)
    assert "norm.bias has merged values from 76288 to 76288, which torch.float16 cannot hold" in said
    assert "write float32 (--dtype float32)" in said
    with pytest.raises(SimoError, match=r"norm\.bias has merged values"):
        merge_states({n: s.half() for n, s in states[0].items()}, states[1:], TaskArithmetic(1.5))
    paths = saved(tmp_path, states)
    merge_files(paths[0], paths[1:], TaskArithmetic(1.5), tmp_path / "o.safetensors", dtype="float32")
    assert float(load_file(tmp_path / "o.safetensors")["norm.bias"][0]) == 76288
    merge_files(paths[0], paths[1:], TaskArithmetic(0.5), tmp_path / "p.safetensors", dtype="float16")
    assert float(load_file(tmp_path / "p.safetensors")["norm.bias"][0]) == 65024


@pytest.mark.parametrize(("whose", "said"), [(0, "base.safetensors"), (2, "depth.safetensors")])
@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_broken_running_statistics_are_named_and_nothing_is_written(
    tmp_path: Path, states: list[State], statistic: str, whose: int, said: str
) -> None:
    for state in states:
        state["bn.running_mean"], state["bn.running_var"] = torch.zeros(2), torch.ones(2)
    states[whose][f"bn.{statistic}"] = torch.tensor([0.0, float("nan")])
    assert f"{said} holds NaN or infinity in bn.{statistic}" in refusal(tmp_path, states)


def test_merged_running_statistics_that_overflow_are_named(tmp_path: Path, states: list[State]) -> None:
    for i, state in enumerate(states):
        state["bn.running_mean"], state["bn.running_var"] = torch.full((2,), 400.0 * i).half(), torch.ones(2).half()
        state["bn.running_mean"] *= i  # means 0, 400, 1600 and 3600 have a variance beyond 65504
    assert "bn.running_var has merged values" in refusal(tmp_path, states)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("whose", [0, 2])
def test_quantised_weights_are_refused_by_name(
    tmp_path: Path, states: list[State], whose: int, dtype: torch.dtype
) -> None:
    name = "blocks.0.attn.qkv.weight"
    states[whose][name] = states[whose][name].to(dtype)
    said = refusal(tmp_path, states)
    assert (
        f"{('base', 'seg', 'depth')[whose]}.safetensors: it holds weights quantised to 8 bits ({dtype}: {name})" in said
    )


def test_adapters_must_be_folded_in(tmp_path: Path, states: list[State]) -> None:
    states[1]["blocks.0.attn.qkv.lora_A.default.weight"] = torch.zeros(4, 48)
    said = refusal(tmp_path, states)
    assert "seg.safetensors: it holds adapters" in said
    assert "merge_and_unload()" in said


def test_experts_of_different_bases_or_of_another_base_are_refused(tmp_path: Path) -> None:
    base, other = tiny_base(), tiny_base(seed=1)
    save(tiny_expert(DEPTH, base, 1), tmp_path / "depth")
    save(tiny_expert(NORMALS, other, 2), tmp_path / "normals")
    save(tiny_expert(NORMALS, base, 2), tmp_path / "same")
    with pytest.raises(SimoError, match=f"different bases: .*depth from {base.sha256[:12]}.*{other.sha256[:12]}"):
        merge_files(base.vit.state_dict(), [tmp_path / "depth", tmp_path / "normals"], WeightAverage(), tmp_path / "o")
    with pytest.raises(SimoError, match=rf"\({other.sha256[:12]}\) is not the base that .*depth came from"):
        merge_files(other.vit.state_dict(), [tmp_path / "depth", tmp_path / "same"], WeightAverage(), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_the_recorded_base_is_known_with_and_without_what_is_skipped(tmp_path: Path) -> None:
    base = tiny_base()
    experts = [tmp_path / task.name for task in (DEPTH, NORMALS)]
    for seed, (path, task) in enumerate(zip(experts, (DEPTH, NORMALS), strict=True)):
        save(tiny_expert(task, base, seed), path)
    vit = dict(base.vit.state_dict())
    merge_files(vit, experts, WeightAverage(), tmp_path / "a.safetensors", skip=["norm.*"])
    assert load_file(tmp_path / "a.safetensors").keys() == {name for name in vit if not name.startswith("norm.")}
    more = vit | {"head.weight": torch.zeros(2, 2)}
    merge_files(more, experts, WeightAverage(), tmp_path / "b.safetensors", skip=["head.*"])
    other = dict(tiny_base(seed=1).vit.state_dict())
    with pytest.raises(SimoError, match="is not the base"):
        merge_files(other, experts, WeightAverage(), tmp_path / "c.safetensors", skip=["norm.*"])


def test_an_unrelated_expert_is_told_of_and_a_fine_tuned_one_is_not(
    tmp_path: Path, states: list[State], caplog: pytest.LogCaptureFixture
) -> None:
    base, *experts = saved(tmp_path, states)
    merge_files(base, experts, TaskArithmetic(), tmp_path / "a.safetensors")
    assert not caplog.records
    states[2] = dict(tiny_base(seed=5).vit.state_dict()) | {"steps": torch.tensor(3)}
    base, *experts = saved(tmp_path, states)
    merge_files(base, experts, TaskArithmetic(), tmp_path / "b.safetensors")
    (warning,) = caplog.records
    assert "depth.safetensors is as far from" in warning.getMessage()


def test_integers_that_differ_are_the_bases_and_named(
    tmp_path: Path, states: list[State], caplog: pytest.LogCaptureFixture
) -> None:
    for state in states:
        state["bn.num_batches_tracked"] = torch.tensor(0)
    states[1]["steps"] = torch.tensor(4)
    states[1]["bn.num_batches_tracked"] = torch.tensor(4)
    base, *experts = saved(tmp_path, states)
    merge_files(base, experts, TaskArithmetic(), tmp_path / "a.safetensors")
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert f"steps ({experts[0]})" in warning.getMessage()
    assert "num_batches" not in warning.getMessage()
    assert load_file(tmp_path / "a.safetensors")["steps"] == 3


def positions(states: list[State], tokens: int) -> list[State]:
    return [s | {"pos_embed": torch.randn(1, tokens if i == 1 else 5, 48) * 0.02} for i, s in enumerate(states)]


def test_other_position_embeddings_are_offered_resampling_and_resampled_as_timm_does(
    tmp_path: Path, states: list[State]
) -> None:
    from timm.layers.pos_embed import resample_abs_pos_embed

    states = positions(states, 17)
    said = refusal(tmp_path, states)
    assert "pos_embed (1, 17, 48) instead of (1, 5, 48)" in said
    assert "--resample-pos-embed" in said
    base, *experts = saved(tmp_path, states)
    merge_files(base, experts, WeightAverage(), tmp_path / "out.safetensors", resample_pos_embed=True)
    resampled = resample_abs_pos_embed(states[1]["pos_embed"], [2, 2], [4, 4], num_prefix_tokens=1)
    states[1]["pos_embed"] = resampled
    assert identical(
        load_file(tmp_path / "out.safetensors"), merge_states(states[0], states[1:], WeightAverage()).shared
    )


def test_a_grid_that_is_no_square_must_be_said(tmp_path: Path, states: list[State]) -> None:
    said = refusal(tmp_path, positions(states, 13), resample_pos_embed=True)
    assert "seg.safetensors has pos_embed of shape (1, 13, 48), which is not a square" in said
    assert "--pos-embed-grid 9x12" in said


class Learns(DataMergeMethod):
    name = "learns"

    def observe(self, given: MergeData) -> Any:
        raise AssertionError

    def merge(self, parameter: Parameter, statistics: Any) -> Tensor:
        raise AssertionError


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": Learns()}, "learns learns from images"),
        ({"method": Own()}, "own gives every task weights of its own, which need a directory"),
        ({"shard_size": "1GB"}, "shards need a directory"),
        ({"shard_size": "huge"}, "is no size"),
        ({"dtype": "int8"}, "unknown output type 'int8'; known: float32"),
        ({"device": "banana"}, "unknown device"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, states: list[State], change: dict[str, Any], said: str
) -> None:
    assert said in refusal(tmp_path, states, **change)


def test_outputs_that_exist_are_kept_unless_told(tmp_path: Path, states: list[State]) -> None:
    base, *experts = saved(tmp_path, states)
    (tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(SimoError, match="exists; choose another name or pass --overwrite"):
        merge_files(base, experts, TaskArithmetic(), tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_text() == "mine"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(SimoError, match="not empty"):
        merge_files(base, experts, TaskArithmetic(), tmp_path / "out")


def test_one_expert_is_not_enough(tmp_path: Path, states: list[State]) -> None:
    assert "at least two experts, got 1" in refusal(tmp_path, states[:2])


@pytest.mark.parametrize("fail", ["statistics", "merge"])
def test_a_method_that_fails_leaves_nothing_behind(
    tmp_path: Path, states: list[State], monkeypatch: pytest.MonkeyPatch, fail: str
) -> None:
    def broken(*_: object) -> None:
        raise SimoError("broken on purpose")

    monkeypatch.setattr(Centred, fail, broken)
    assert refusal(tmp_path, states, method=Centred()) == "broken on purpose"


def test_a_pickle_is_not_written(tmp_path: Path, states: list[State]) -> None:
    base, *experts = saved(tmp_path, states)
    with pytest.raises(SimoError, match=r"out.pth would be a pickle; what is written is .safetensors"):
        merge_files(base, experts, WeightAverage(), tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()
