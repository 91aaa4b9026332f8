"""Files in, files out: bit for bit the merge in memory, from every kind of file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from simo_merge.checkpoints import save
from simo_merge.errors import SimoError
from simo_merge.merging import (
    MERGE_METHODS,
    Emr,
    MergeMethod,
    Parameter,
    TaskArithmetic,
    Ties,
    WeightAverage,
    merge_states,
    passes,
)
from simo_merge.merging.elementwise import pieces
from simo_merge.merging.files import merge_files, open_state
from simo_merge.merging.method import merges_by_entry
from simo_merge.merging.passes import Sources
from simo_merge.weights.architecture import create_vit
from tests.merging.file_states import FILE_METHODS, Centred, Own, State, identical, saved, vit_states
from tests.tiny import DEPTH, NAME, NORMALS, tiny_base, tiny_expert


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


@pytest.mark.parametrize("name", FILE_METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_in_pieces_merge_as_whole_ones_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    states = vit_states(2 if name == "slerp" else 3, dtype=dtype)
    method = MERGE_METHODS[name]()
    whole = merge_states(states[0], states[1:], method)
    base, *experts = saved(tmp_path, states)
    monkeypatch.setattr(passes, "PIECE", 400)
    monkeypatch.setattr(pieces, "_CPU_SPAN", 200)
    output = merge_files(base, experts, method, tmp_path / "out")
    assert identical(load_file(output / "model.safetensors"), whole.shared)
    places = Sources(states[0], states[1:], by_entry=method.by_entry).parameters()
    assert any(parameter.start for parameter in places) == method.by_entry


@dataclass(frozen=True)
class RowScaled(TaskArithmetic):
    """Says nothing of its own `merge`, which looks at rows."""

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        merged = super().merge(parameter, statistics)
        return merged / (1 + parameter.base.norm())


def test_a_method_that_overrides_the_merge_of_another_gets_whole_parameters(
    tmp_path: Path, states: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *experts = saved(tmp_path, states)
    monkeypatch.setattr(passes, "PIECE", 400)
    merge_files(base, experts, RowScaled(), tmp_path / "out.safetensors")
    assert identical(load_file(tmp_path / "out.safetensors"), merge_states(states[0], states[1:], RowScaled()).shared)
    assert merges_by_entry(TaskArithmetic())
    assert not merges_by_entry(RowScaled())


def test_methods_that_treat_entries_alike_say_so() -> None:
    alike = {name for name in FILE_METHODS if MERGE_METHODS[name]().by_entry}
    assert alike == {"weight-average", "task-arithmetic", "preference-soup", "ties", "magnitude-mask"}
    assert not Ties(trim="per_tensor").by_entry
    assert Ties(trim="per_tensor", density=1.0).by_entry


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
    seen = [parameter.name for parameter in Sources(states[0], states[1:]).parameters()]
    assert seen == sorted(name for name in states[0] if not name.startswith(("bn.", "steps")))


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
