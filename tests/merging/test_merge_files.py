"""Files in, files out: bit for bit the merge in memory, from every kind of file, and nothing half written."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from simo_merge.checkpoints import save
from simo_merge.errors import SimoError
from simo_merge.merging import (
    MERGE_METHODS,
    DataMergeMethod,
    Emr,
    MergeMethod,
    Parameter,
    TaskArithmetic,
    TaskSpecificMethod,
    WeightAverage,
    merge_states,
)
from simo_merge.merging.files import merge_files, open_state
from simo_merge.merging.method import MergeData
from simo_merge.merging.parameter import Parameters
from simo_merge.merging.passes import Sources
from simo_merge.weights.architecture import create_vit
from tests.tiny import DEPTH, NAME, NORMALS, tiny_base, tiny_expert

State = dict[str, Tensor]
FILE_METHODS = sorted(name for name, kind in MERGE_METHODS.items() if not issubclass(kind, DataMergeMethod))


def vit_states(count: int = 3, shift: float = 0.02, dtype: torch.dtype = torch.float32) -> list[State]:
    """A base and fine-tuned experts in timm's names, with an integer buffer."""
    base = {name: tensor.to(dtype) for name, tensor in tiny_base().vit.state_dict().items()}
    states = [base | {"steps": torch.tensor(3)}]
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        moved = {n: (t.float() + shift * torch.randn(t.shape, generator=generator)).to(dtype) for n, t in base.items()}
        states.append(moved | {"steps": torch.tensor(3)})
    return states


@pytest.fixture
def states() -> list[State]:
    return vit_states()


def saved(folder: Path, states: list[State]) -> list[Path]:
    paths = [folder / f"{name}.safetensors" for name in ("base", "seg", "depth", "normals", "more")[: len(states)]]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path)
    return paths


def identical(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(
        found[n].dtype == expected[n].dtype and torch.equal(found[n], expected[n]) for n in expected
    )


@dataclass(frozen=True)
class Centred(MergeMethod):
    """Needs a pass, and draws from what the pass gives: the mean magnitude of everything."""

    name: ClassVar[str] = "centred"

    def statistics(self, parameters: Parameters) -> float:
        total = 0.0
        for parameter in parameters():
            total += float(parameter.vectors.abs().sum())
        return total

    def merge(self, parameter: Parameter, statistics: float) -> Tensor:
        return parameter.base + parameter.vectors.mean(0) * (statistics / (1 + statistics))


@dataclass(frozen=True)
class Own(TaskSpecificMethod):
    name: ClassVar[str] = "own"

    def merge(self, parameter: Parameter, statistics: Any) -> Tensor:
        return parameter.base

    def merge_for_tasks(self, parameter: Parameter, statistics: Any) -> Tensor:
        return torch.stack(parameter.experts)


# -- the same as in memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILE_METHODS)
def test_every_method_gives_in_files_what_it_gives_in_memory(tmp_path: Path, states: list[State], name: str) -> None:
    method = MERGE_METHODS[name]()
    kept = ("blocks.0.", "blocks.3.norm", "cls_token", "norm.", "steps")  # some methods iterate
    states = [{n: t for n, t in state.items() if n.startswith(kept)} for state in states[:3]]
    expected = merge_states(states[0], states[1:], method)
    base, *experts = saved(tmp_path, states)
    output = merge_files(base, experts, method, tmp_path / "out")
    assert identical(load_file(output / "model.safetensors"), expected.shared)
    for path, own in zip(experts, expected.by_expert, strict=False):
        assert identical(load_file(output / "tasks" / path.stem / "model.safetensors"), own)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", [TaskArithmetic(0.4), Centred()])
def test_half_precision_files_are_summed_in_float32(tmp_path: Path, dtype: torch.dtype, method: MergeMethod) -> None:
    states = vit_states(dtype=dtype)
    base, *experts = saved(tmp_path, states)
    merge_files(base, experts, method, tmp_path / "out.safetensors")
    assert identical(load_file(tmp_path / "out.safetensors"), merge_states(states[0], states[1:], method).shared)
    merge_files(base, experts, method, tmp_path / "wide.safetensors", dtype="float32")
    wide = [{n: t.float() if t.is_floating_point() else t for n, t in s.items()} for s in states]
    assert identical(load_file(tmp_path / "wide.safetensors"), merge_states(wide[0], wide[1:], method).shared)


def test_precisions_may_be_mixed_and_the_output_is_as_the_base(tmp_path: Path, states: list[State]) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float32)
    mixed = [
        {n: t.to(k) if t.is_floating_point() else t for n, t in s.items()} for s, k in zip(states, kinds, strict=True)
    ]
    base, *experts = saved(tmp_path, mixed)
    merge_files(base, experts, WeightAverage(), tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert identical(found, merge_states(mixed[0], mixed[1:], WeightAverage()).shared)
    assert {t.dtype for t in found.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(tmp_path: Path, states: list[State], workers: int) -> None:
    base, *experts = saved(tmp_path, states)
    before = torch.get_num_threads()
    merge_files(base, experts, Centred(), tmp_path / "out.safetensors", workers=workers)
    assert torch.get_num_threads() == before
    assert identical(load_file(tmp_path / "out.safetensors"), merge_states(states[0], states[1:], Centred()).shared)


def test_the_order_of_names_changes_nothing(states: list[State]) -> None:
    turned = [dict(reversed(state.items())) for state in states]
    order = [parameter.name for parameter in Sources(turned[0], turned[1:]).parameters()]
    assert order == [name for name, _ in Sources(states[0], states[1:]).map(lambda _: None, "x")] == sorted(order)
    expected = merge_states(states[0], states[1:], Centred()).shared
    assert identical(merge_states(turned[0], turned[1:], Centred()).shared, expected)


def test_shards_pickles_checkpoints_and_mappings_merge_alike(tmp_path: Path) -> None:
    base = tiny_base()
    experts = [tiny_expert(DEPTH, base, 1), tiny_expert(NORMALS, base, 2)]
    states = [expert.encoder.vit.state_dict() for expert in experts]
    expected = merge_states(base.vit.state_dict(), states, TaskArithmetic()).shared
    save_file(dict(base.vit.state_dict()), tmp_path / "base.safetensors")
    for expert in experts:
        save(expert, tmp_path / expert.task.name)
    torch.save(states[0], tmp_path / "depth.pth")
    merge_files(
        tmp_path / "base.safetensors", [tmp_path / "depth", tmp_path / "normals"], TaskArithmetic(), tmp_path / "a"
    )
    merge_files(
        base.vit.state_dict(), [tmp_path / "depth.pth", states[1]], TaskArithmetic(), tmp_path / "b", shard_size=5000
    )
    assert identical(load_file(tmp_path / "a" / "model.safetensors"), dict(expected))
    assert (tmp_path / "b" / "model.safetensors.index.json").is_file()
    assert identical(dict(open_state(tmp_path / "b")), dict(expected))


def test_the_output_loads_into_timm_strictly(tmp_path: Path) -> None:
    base, *experts = saved(tmp_path, [dict(s) for s in vit_states()])
    merge_files(base, experts, WeightAverage(), tmp_path / "out.safetensors", skip=["steps"])
    vit = create_vit(NAME, (32, 48), depth=4, embed_dim=48, num_heads=3)
    vit.load_state_dict(load_file(tmp_path / "out.safetensors"), strict=True)


def test_the_header_says_how_the_file_was_made(tmp_path: Path, states: list[State]) -> None:
    base, *experts = saved(tmp_path, states)
    merge_files(base, experts, TaskArithmetic(0.4), tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        record = json.loads(file.metadata()["simo_merge"])
    assert record["method"] == "task-arithmetic"
    assert record["parameters"] == {"scale": 0.4}
    assert record["experts"] == ["seg.safetensors", "depth.safetensors", "normals.safetensors"]


def test_running_statistics_have_their_own_rule_and_the_method_never_sees_them(
    tmp_path: Path, states: list[State]
) -> None:
    for i, state in enumerate(states):
        state["bn.running_mean"], state["bn.running_var"] = torch.full((2,), 2.0 * i), torch.full((2,), 1.0 + i)
        state["bn.num_batches_tracked"] = torch.tensor(10 * i)
    base, *experts = saved(tmp_path, states)
    merge_files(base, experts, TaskArithmetic(-3.0), tmp_path / "out.safetensors")  # variances would be negative
    found = load_file(tmp_path / "out.safetensors")
    assert identical(found, merge_states(states[0], states[1:], TaskArithmetic(-3.0)).shared)
    assert found["bn.running_mean"].tolist() == [4.0, 4.0]  # of 2, 4 and 6
    assert found["bn.running_var"].tolist() == pytest.approx([3 + 8 / 3] * 2)  # of 2, 3 and 4, and of the means
    assert found["bn.num_batches_tracked"] == 60
    assert not [name for name in Sources(states[0], states[1:]).names if name.startswith("bn.")]


def test_task_specific_methods_write_the_weights_of_every_expert(tmp_path: Path, states: list[State]) -> None:
    base, *experts = saved(tmp_path, states)
    output = merge_files(base, experts, Own(), tmp_path / "out")
    assert identical(load_file(output / "model.safetensors"), states[0])
    for path, state in zip(experts, states[1:], strict=True):
        assert identical(load_file(output / "tasks" / path.stem / "model.safetensors"), state)


@pytest.mark.parametrize("output", ["in", "in/seg", "link"])
def test_a_directory_that_holds_what_is_merged_is_not_replaced(
    tmp_path: Path, states: list[State], output: str
) -> None:
    folder = tmp_path / "in"
    (folder / "seg").mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    base, seg, depth = saved(folder, states[:3])
    seg = seg.rename(folder / "seg" / "model.safetensors")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SimoError, match=r"would delete .*, which is to be merged; choose another output"):
        merge_files(base, [seg.parent, depth], TaskArithmetic(), tmp_path / output, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_files_that_are_called_model_give_their_folders_names(
    tmp_path: Path, states: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [Path("seg/model.safetensors"), Path("v1.0/pytorch_model.bin"), Path("normals.v2.safetensors")]
    for file in files[:2]:
        file.parent.mkdir()
    save_file(states[1], files[0])
    torch.save(states[2], files[1])
    save_file(states[3], files[2])
    merge_files(states[0], files, Emr(), "out")
    assert sorted(path.name for path in Path("out/tasks").iterdir()) == ["normals.v2", "seg", "v1.0"]
    merge_files(states[0], [Path("seg"), Path("v1.0")], Own(), "dirs")
    assert identical(load_file("dirs/tasks/v1.0/model.safetensors"), states[2])


def test_experts_of_one_name_have_no_place_for_weights_of_their_own(tmp_path: Path, states: list[State]) -> None:
    paths = [tmp_path / run / "depth.safetensors" for run in ("a", "b")]
    for path, state in zip(paths, states[1:], strict=False):
        path.parent.mkdir()
        save_file(state, path)
    with pytest.raises(SimoError, match=f"{paths[0]}, {paths[1]} do not differ"):
        merge_files(states[0], paths, Emr(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge_files(states[0], paths, TaskArithmetic(), tmp_path / "out")


def test_an_expert_may_be_replaced_by_the_merge(tmp_path: Path, states: list[State]) -> None:
    base, *experts = saved(tmp_path, states)
    merge_files(base, experts, TaskArithmetic(), experts[0], overwrite=True)
    assert identical(load_file(experts[0]), merge_states(states[0], states[1:], TaskArithmetic()).shared)


def test_memory_is_bounded_by_a_few_parameters(tmp_path: Path) -> None:
    """While one parameter is merged, no more than the workers' parameters have been read."""
    alive: list[int] = []

    class Counting(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            alive.append(1)
            return super().__getitem__(name)

    names = [f"w{i:02d}" for i in range(40)]
    base = Counting({name: torch.zeros(2) for name in names})
    sources = Sources(base, [base], workers=3)
    alive.clear()
    for done, _ in enumerate(sources.map(lambda parameter: None, "reading"), start=1):
        assert len(alive) / 2 <= done + 3
    alive.clear()
    for done, _ in enumerate(sources.parameters(), start=1):
        assert len(alive) / 2 <= done + 1


def test_a_pass_that_is_left_early_ends_its_threads(states: list[State]) -> None:
    sources = Sources(states[0], states[1:])
    for passing in (sources.parameters(), sources.map(lambda parameter: None, "x")):
        next(passing)
        assert isinstance(passing, Iterator)
        passing.close()  # type: ignore[attr-defined]


# -- what is refused --------------------------------------------------------------------------------------------


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
