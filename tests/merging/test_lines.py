"""LiNeS: a merge that grows with depth, on top of any other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging import (
    MERGE_METHODS,
    DataMergeMethod,
    MergeData,
    MergeMethod,
    Parameter,
    TaskArithmetic,
    WeightAverage,
    merge_method,
)
from simo_merge.merging.elementwise.lines import Lines
from simo_merge.merging.elementwise.sparse import Breadcrumbs
from simo_merge.merging.elementwise.tall import Consensus
from simo_merge.merging.elementwise.ties import Ties
from tests.merging.random_experts import base_of, close, merged, random_parameters, vectors_of, with_vectors

SHAPES = ((4, 3), (5,), (6, 2), (2, 2), (3,), (4,))
DEPTHS = (0.0, 0.0, 0.5, 1.0, 1.0, 0.0)


def deep_parameters(seed: int = 0) -> list[Parameter]:
    """Before the blocks, blocks 0, 1, 2 and 2, after the blocks."""
    made = random_parameters(seed, 3, shapes=SHAPES)
    layers = (0, 1, 2, 3, 3, 4)
    return [Parameter(p.name, p.base, p.experts, layer, 5) for p, layer in zip(made, layers, strict=True)]


def factors(parameters: list[Parameter], alpha: float, beta: float) -> Tensor:
    """The factor of every entry."""
    pairs = zip(parameters, DEPTHS, strict=True)
    return torch.cat([torch.full((p.base.numel(),), alpha + beta * depth, dtype=torch.float64) for p, depth in pairs])


@pytest.mark.parametrize(
    ("on", "options", "method"),
    [
        ("task-arithmetic", {}, TaskArithmetic(1.0)),
        ("task-arithmetic", {"scale": 0.5}, TaskArithmetic(0.5)),
        ("ties", {"density": 0.4}, Ties(0.4)),
        ("ties", {"density": 0.4, "trim": "per_tensor", "scale": 2.0}, Ties(0.4, "per_tensor", scale=2.0)),
        ("breadcrumbs", {"smallest": 0.3}, Breadcrumbs(smallest=0.3, scale=1.0)),
        ("consensus", {}, Consensus(scale=1.0)),
        ("weight-average", {}, WeightAverage()),
    ],
)
def test_the_change_of_any_method_is_scaled_by_depth(on: str, options: dict[str, Any], method: MergeMethod) -> None:
    parameters = deep_parameters()
    base, plain = base_of(parameters), merged(method, parameters)
    found = merged(Lines(0.2, 0.7, on, options), parameters)
    assert close(found, base + factors(parameters, 0.2, 0.7) * (plain - base))


@pytest.mark.parametrize("on", ["task-arithmetic", "ties", "consensus"])
def test_alpha_is_by_default_the_ratio_of_the_norms_over_the_number_of_tasks(on: str) -> None:
    parameters = deep_parameters(3)
    summed = sum(abs(sum(values)) for values in zip(*vectors_of(parameters), strict=True))
    base, plain = base_of(parameters), merged(merge_method(on, {"scale": 1.0}), parameters)
    alpha = summed / float((plain - base).abs().sum()) / 3
    assert close(
        merged(Lines(beta=0.4, method=on), parameters), base + factors(parameters, alpha, 0.4) * (plain - base)
    )


def test_for_task_arithmetic_alpha_is_one_over_the_number_of_tasks() -> None:
    parameters = deep_parameters()
    assert close(merged(Lines(beta=0.0), parameters), merged(WeightAverage(), parameters))


def test_a_flat_schedule_of_one_changes_nothing() -> None:
    parameters = deep_parameters()
    assert torch.equal(merged(Lines(1.0, 0.0, "ties"), parameters), merged(Ties(), parameters))


def test_a_flat_schedule_of_zero_gives_the_base_bit_for_bit() -> None:
    parameters = deep_parameters()
    assert torch.equal(merged(Lines(0.0, 0.0), parameters), base_of(parameters))


@pytest.mark.parametrize("on", ["task-arithmetic", "ties"])
def test_experts_that_are_the_base_give_the_base_bit_for_bit(on: str) -> None:
    parameters = with_vectors(deep_parameters(), 0.0)
    assert torch.equal(merged(Lines(method=on), parameters), base_of(parameters))


def test_a_model_of_one_block_or_none_has_no_depth() -> None:
    for layers in (2, 3):
        made = [Parameter(p.name, p.base, p.experts, min(1, layers - 2), layers) for p in random_parameters(0)]
        base = base_of(made)
        plain = merged(TaskArithmetic(1.0), made)
        assert close(merged(Lines(0.5, 3.0), made), base + 0.5 * (plain - base))


def test_the_options_can_be_written_in_yaml() -> None:
    written = "{beta: 0.5, method: ties, options: {density: 0.1}}"
    assert merge_method("lines", yaml.safe_load(written)) == Lines(beta=0.5, method="ties", options={"density": 0.1})


def test_the_record_is_plain_json_and_gives_the_method_back() -> None:
    method = Lines(beta=0.5, method="ties", options={"density": 0.1})
    record = json.loads(json.dumps(method.parameters()))
    assert record == {"alpha": None, "beta": 0.5, "method": "ties", "options": {"density": 0.1}}
    again = merge_method("lines", record)
    assert again == method
    assert hash(again) == hash(method)
    parameters = deep_parameters()
    assert torch.equal(merged(again, parameters), merged(method, parameters))


def test_a_merge_records_the_alpha_that_it_used() -> None:
    parameters, method = deep_parameters(), Lines(method="ties")
    record = method.record(method.statistics(lambda: iter(parameters)))
    assert record["alpha"] > 0
    again = merge_method("lines", json.loads(json.dumps(record)))
    assert torch.equal(merged(again, parameters), merged(method, parameters))


def test_a_schedule_can_stand_on_a_schedule() -> None:
    parameters = deep_parameters()
    base, plain = base_of(parameters), merged(TaskArithmetic(1.0), parameters)
    inner = {"alpha": 0.5, "beta": 1.0}
    expected = base + factors(parameters, 0.2, 0.1) * factors(parameters, 0.5, 1.0) * (plain - base)
    assert close(merged(Lines(0.2, 0.1, "lines", inner), parameters), expected)


@dataclass(frozen=True)
class _Looking(DataMergeMethod):
    name: ClassVar[str] = "looking"

    def observe(self, given: MergeData) -> Any:
        return None

    def merge(self, parameter: Parameter, statistics: Any) -> Tensor:
        return parameter.base


def test_methods_that_cannot_be_scaled_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MERGE_METHODS, "looking", _Looking)
    with pytest.raises(SimoError, match="lines scales a merge of weights alone, but looking learns from images"):
        Lines(method="looking")
    for on in ("tall-masks", "emr"):
        with pytest.raises(SimoError, match=f"{on} gives every task its own"):
            Lines(method=on)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": float("nan")}, "alpha of lines must be a finite number"),
        ({"beta": float("inf")}, "beta of lines must be a finite number"),
        ({"method": "tie"}, "unknown merge method 'tie'; known: .*ties"),
        ({"method": "ties", "options": {"density": 3}}, "density of ties"),
        ({"method": "ties", "options": {"dense": 3}}, "'ties' does not take"),
        ({"options": [1]}, r"options of lines are the options of task-arithmetic by name, got \[1\]"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        Lines(**options)
