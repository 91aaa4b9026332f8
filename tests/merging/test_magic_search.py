"""MAGIC finds its sensitive modules: each is moved further by hand here, and what that does is measured."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from simo_merge.data import collate
from simo_merge.errors import SimoError
from simo_merge.merging import Magic, MergeData, TaskArithmetic, merge, merge_states
from simo_merge.merging.from_images.magic import named_by
from simo_merge.merging.learned.objectives import OBJECTIVES
from tests.merging.reached import given, merged_by, state
from tests.merging.test_magic import modules
from tests.tiny import DEPTH, NORMALS, TinyData, state_of, tiny_base, tiny_expert


@pytest.fixture(scope="module")
def data() -> MergeData:
    return given(images=5, shift=0.2)


def slow_sensitivity(data: MergeData, scale: float, objective: str) -> dict[str, float]:
    """mean_t L_t / L_t(unchanged) - 1, from state dicts in which one module's task vector is 1.1 times as long."""
    states = [state(expert) for expert in data.experts]
    base = data.base.vit.state_dict()
    merged = merge_states(base, states, TaskArithmetic(scale)).shared
    everything = list(range(len(data.images)))
    judge = OBJECTIVES[objective](data, everything)
    batch = collate([data.images[i] for i in everything])

    def losses(changed: dict[str, Tensor]) -> Tensor:
        encoder = copy.deepcopy(data.experts[0].encoder).eval()
        encoder.vit.load_state_dict(changed)
        with torch.no_grad():
            return judge.losses(encoder(batch.images), everything, batch).double()

    plain = losses(merged)
    found = {}
    for module in modules(data):
        moved = {
            name: base[name] + 1.1 * (value - base[name]) if name.rpartition(".")[0] == module else value
            for name, value in merged.items()
        }
        found[module] = float((losses(moved) / plain).mean()) - 1
    return found


@pytest.mark.parametrize(("search", "objective"), [("features", "features"), ("labels", "supervised")])
def test_the_modules_that_hurt_most_are_found_worst_first(data: MergeData, search: str, objective: str) -> None:
    expected = slow_sensitivity(data, 0.5, objective)
    order = sorted(expected, key=lambda name: -expected[name])[:3]
    assert Magic(0.5, search=search, count=3).observe(data).sensitive == tuple(order)  # type: ignore[arg-type]


@pytest.mark.parametrize("dual", [False, True])
def test_what_is_found_counts_as_if_it_had_been_given(data: MergeData, dual: bool) -> None:
    method = Magic(0.2, dual, ("patch_embed",), search="features", count=4)
    found = method.observe(data)
    assert found.sensitive[0] == "patch_embed"
    assert len(found.sensitive) == 5
    searched, told = merged_by(method, data), merged_by(Magic(0.2, dual, found.sensitive), data)
    assert all(torch.equal(value, told[name]) for name, value in searched.items())
    assert all(found.values[name] <= 1 for name in found.sensitive[1:])


def test_the_search_changes_nothing_else(data: MergeData) -> None:
    before = state_of(*data.experts)
    origin = {name: value.clone() for name, value in data.base.vit.state_dict().items()}
    Magic(search="labels").observe(data)
    assert state_of(*data.experts) == before
    assert all(torch.equal(value, origin[name]) for name, value in data.base.vit.state_dict().items())


def test_fewer_images_may_be_looked_at(data: MergeData) -> None:
    few = replace(data, images=TinyData(2, data.images.tasks.values()))  # type: ignore[arg-type]
    few.images.samples = data.images.samples[:2]  # type: ignore[attr-defined]
    capped = Magic(search="features", search_images=2, count=4).observe(data)
    assert capped.sensitive == Magic(search="features", count=4).observe(few).sensitive


def test_labels_are_needed_only_where_they_are_looked_at() -> None:
    base = tiny_base()
    experts = [tiny_expert(task, base, seed) for seed, task in enumerate((DEPTH, NORMALS))]
    merge(experts, Magic(search="features"), base, TinyData(2), "cpu")
    with pytest.raises(SimoError, match=r"learns from labels, and .* has none for depth, normals"):
        merge(experts, Magic(search="labels"), base, TinyData(2), "cpu")


def test_the_checkpoint_says_what_was_found() -> None:
    base = tiny_base()
    experts = [tiny_expert(task, base, seed) for seed, task in enumerate((DEPTH, NORMALS))]
    merged = merge(experts, Magic(0.6, search="features", count=2), base, TinyData(3), "cpu")
    assert merged.merge is not None
    recorded = json.loads(json.dumps(dict(merged.merge.parameters)))
    assert recorded["search"] == "features"
    assert Magic(**recorded).sensitive == tuple(recorded["sensitive"])
    assert all(merged.encoder.vit.get_submodule(name) is not None for name in recorded["sensitive"])


def test_experts_that_the_merge_agrees_with_wholly_leave_nothing_to_find() -> None:
    same = given(images=2, seeds=(4,))
    with pytest.raises(SimoError, match="losses that grow, and those of the merge are segmentation 0"):
        Magic(1.0, search="features").observe(same)


@pytest.mark.parametrize(
    ("name", "parts", "held"),
    [
        ("blocks.11.norm1", ("blocks.1.norm1",), False),
        ("blocks.11.norm1", ("blocks.1",), False),
        ("blocks.1.norm1", ("blocks.1",), True),
        ("blocks.1.mlp.fc2.weight", ("attn", "fc2"), True),
        ("blocks.1.norm1", ("norm",), False),
    ],
)
def test_names_are_matched_between_dots(name: str, parts: tuple[str, ...], held: bool) -> None:
    assert named_by(name, parts) == held


def test_options_are_checked() -> None:
    with pytest.raises(SimoError, match="unknown search 'all' of magic; known: none, features, labels"):
        Magic(search="all")  # type: ignore[arg-type]
    with pytest.raises(SimoError, match="count of magic must be a whole number, 1 or more, got 0"):
        Magic(count=0)
    with pytest.raises(SimoError, match="search_images of magic"):
        Magic(search_images=0)
