"""Recipes: the usual names and parameters mean here what they mean elsewhere, and what is not known is refused."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging import MergeMethod, Parameter, TaskArithmetic, WeightAverage, merge_method, merge_states
from simo_merge.merging.describe import describe_method, method_named, option_defaults
from simo_merge.merging.recipes.conditional import Condition, Conditional
from simo_merge.merging.recipes.recipe import FileMerge, read_recipe
from simo_merge.merging.registry import MERGE_METHODS

State = dict[str, Tensor]


def states(count: int = 2) -> list[State]:
    generator = torch.Generator().manual_seed(0)
    names = ("blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "norm.weight")
    return [{name: torch.randn(6, 5, generator=generator) for name in names} for _ in range(count + 1)]


def recipe_of(tmp_path: Path, method: str, models: list[dict[str, Any]] | None = None, **content: Any) -> FileMerge:
    models = models or [{"model": "a.safetensors"}, {"model": "b.safetensors"}]
    content = {"merge_method": method, "base_model": "base.safetensors", "models": models, **content}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return read_recipe(tmp_path / "recipe.yaml")


def weighted(*weights: Any, **more: Any) -> list[dict[str, Any]]:
    return [
        {"model": f"{name}.safetensors", "parameters": {"weight": weight, **more}}
        for name, weight in zip("abc", weights, strict=False)
    ]


def same(found: MergeMethod, formula: Any, count: int = 2) -> bool:
    """Whether a method gives base + formula(task vectors), in float64."""
    base, *experts = states(count)
    merged = merge_states(base, experts, found).shared
    return all(
        torch.allclose(
            merged[name].double(),
            base[name].double() + formula([e[name].double() - base[name].double() for e in experts], name),
            atol=1e-5,
        )
        for name in base
    )


# -- what a recipe means ----------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_recipe_or_to_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    plan = recipe_of(tmp_path, "linear", dtype="float16")
    assert plan.base == Path("base.safetensors")
    assert plan.experts == (tmp_path / "a.safetensors", Path("b.safetensors"))
    assert plan.dtype == "float16"


def test_the_base_among_the_models_is_no_expert(tmp_path: Path) -> None:
    models = [{"model": "base.safetensors"}, *weighted(1.0, 1.0)]
    assert len(recipe_of(tmp_path, "task_arithmetic", models).experts) == 2


def test_linear_averages_all_models_that_are_listed_the_base_too(tmp_path: Path) -> None:
    models = [{"model": "base.safetensors", "parameters": {"weight": 2.0}}, *weighted(1.0, 3.0)]
    plan = recipe_of(tmp_path, "linear", models)
    assert plan.experts == (Path("base.safetensors"), Path("a.safetensors"), Path("b.safetensors"))
    base, a, b = (state["norm.weight"] for state in states())
    found = plan.method.merge(Parameter("norm.weight", base, (base, a, b)), None)
    assert torch.allclose(found, (2 * base + a + 3 * b) / 6, atol=1e-6)


def test_linear_needs_no_base(tmp_path: Path) -> None:
    plan = recipe_of(tmp_path, "linear", base_model=None)
    assert plan.base == Path("a.safetensors")
    assert plan.experts == (Path("a.safetensors"), Path("b.safetensors"))


def test_the_base_is_known_however_its_path_is_written(tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_bytes(b"")
    for name in ("./base.safetensors", str(tmp_path / "base.safetensors")):
        plan = recipe_of(tmp_path, "task_arithmetic", [{"model": name}, *weighted(1.0, 1.0)])
        assert plan.experts == (Path("a.safetensors"), Path("b.safetensors"))


def test_our_methods_take_their_own_options(tmp_path: Path) -> None:
    assert recipe_of(tmp_path, "task-arithmetic").method == TaskArithmetic()
    assert recipe_of(tmp_path, "task-arithmetic", parameters={"scale": 0.7}).method == TaskArithmetic(0.7)
    assert recipe_of(tmp_path, "weight_average").method == WeightAverage()
    ties = recipe_of(tmp_path, "ties", parameters={"density": 0.5, "elect": "count"}).method
    assert ties == merge_method("ties", {"density": 0.5, "elect": "count"})


def test_linear_is_the_average_weighted_where_weights_differ(tmp_path: Path) -> None:
    assert recipe_of(tmp_path, "linear").method == WeightAverage()
    assert recipe_of(tmp_path, "linear", weighted(0.5, 0.5)).method == WeightAverage()
    assert same(recipe_of(tmp_path, "linear", weighted(3.0, 1.0)).method, lambda v, _: (3 * v[0] + v[1]) / 4)


def test_task_arithmetic_of_other_tools_sums_weighted_task_vectors(tmp_path: Path) -> None:
    plan = recipe_of(tmp_path, "task_arithmetic", weighted(0.5, 2.0), parameters={"lambda": 0.5})
    assert same(plan.method, lambda v, _: 0.25 * v[0] + 1.0 * v[1])
    assert same(recipe_of(tmp_path, "task_arithmetic").method, lambda v, _: v[0] + v[1])
    assert same(
        recipe_of(tmp_path, "task_arithmetic", parameters={"weight": 0.3}).method, lambda v, _: 0.3 * (v[0] + v[1])
    )


def plain_ties(vectors: list[Tensor], density: float) -> Tensor:
    kept = []
    for vector in vectors:
        count = max(1, round(density * vector.numel()))
        threshold = vector.abs().flatten().sort(descending=True).values[count - 1]
        kept.append(torch.where(vector.abs() >= threshold, vector, 0.0))
    sign = torch.sign(sum(kept))  # type: ignore[arg-type]
    agreeing = [torch.where(torch.sign(vector) == sign, vector, 0.0) for vector in kept]
    number = sum((vector != 0).double() for vector in agreeing)
    return sum(agreeing) / torch.clamp(number, min=1)  # type: ignore[arg-type]


def test_ties_of_other_tools_trims_within_each_tensor(tmp_path: Path) -> None:
    plan = recipe_of(tmp_path, "ties", weighted(1.0, 1.0, density=0.4), parameters={"lambda": 0.5})
    assert same(plan.method, lambda v, _: 0.5 * plain_ties(v, 0.4))


def test_dare_of_other_tools_keeps_its_density(tmp_path: Path) -> None:
    for name, combine in (("dare_linear", "linear"), ("dare_ties", "ties")):
        method = recipe_of(tmp_path, name, weighted(0.5, 0.5, density=0.75)).method
        assert method == merge_method("dare", {"drop": 0.25, "combine": combine, "scale": 0.5})


def test_breadcrumbs_of_other_tools_keeps_its_density(tmp_path: Path) -> None:
    method = recipe_of(tmp_path, "breadcrumbs", weighted(1.0, 1.0), parameters={"density": 0.7, "gamma": 0.1}).method
    assert method == merge_method("breadcrumbs", {"outliers": 0.1, "smallest": 0.2, "scale": 1.0})
    method = recipe_of(tmp_path, "breadcrumbs", parameters={"density": 0.7}).method
    assert method == merge_method("breadcrumbs", {"outliers": 0.01, "smallest": 0.29, "scale": 1.0})
    assert recipe_of(tmp_path, "breadcrumbs").method == merge_method("breadcrumbs")


def test_a_list_of_scales_is_one_for_each_model_where_none_is_weighed(tmp_path: Path) -> None:
    for models in (None, weighted(1.0, 1.0)):
        plan = recipe_of(tmp_path, "task_arithmetic", models, parameters={"lambda": [0.25, 0.5]})
        assert plan.method == TaskArithmetic((0.25, 0.5))


def test_slerp_of_other_tools_goes_from_the_base_to_the_other_model(tmp_path: Path) -> None:
    plan = recipe_of(
        tmp_path, "slerp", [{"model": "base.safetensors"}, {"model": "b.safetensors"}], parameters={"t": 0.25}
    )
    assert plan.experts == (Path("base.safetensors"), Path("b.safetensors"))
    assert plan.method == merge_method("slerp", {"t": 0.25, "between": "weights"})


# -- values for some parameters only ----------------------------------------------------------------------------


def test_the_first_condition_that_holds_gives_the_value(tmp_path: Path) -> None:
    scales = [{"filter": "attn", "value": 0.5}, {"filter": "mlp", "value": 0.0}, {"value": 0.25}]
    plan = recipe_of(tmp_path, "task-arithmetic", parameters={"scale": scales})

    def formula(vectors: list[Tensor], name: str) -> Tensor:
        return (0.5 if "attn" in name else 0.0 if "mlp" in name else 0.25) * sum(vectors)  # type: ignore[return-value]

    assert same(plan.method, formula)
    assert plan.method.parameters()["method"] == "task-arithmetic"


def test_where_no_condition_holds_the_default_is_taken(tmp_path: Path) -> None:
    plan = recipe_of(tmp_path, "task-arithmetic", parameters={"scale": [{"filter": "attn", "value": 0.5}]})
    assert same(plan.method, lambda v, name: (0.5 if "attn" in name else 0.3) * sum(v))


def test_statistics_are_of_all_parameters_whatever_the_conditions(tmp_path: Path) -> None:
    base, *experts = states(3)
    scales = [{"filter": "attn", "value": 0.5}, {"value": 2.0}]
    plan = recipe_of(tmp_path, "ties", parameters={"scale": scales, "density": 0.3})
    found = merge_states(base, experts, plan.method).shared
    for scale, part in ((0.5, "attn"), (2.0, "mlp"), (2.0, "norm")):
        whole = merge_states(base, experts, merge_method("ties", {"density": 0.3, "scale": scale})).shared
        for name in (n for n in base if part in n):
            assert torch.equal(found[name], whole[name])


def test_values_that_no_parameter_gets_together_are_not_tried_together(tmp_path: Path) -> None:
    parameters = {
        "outliers": [{"filter": "attn", "value": 0.5}, {"value": 0.0}],
        "smallest": [{"filter": "attn", "value": 0.3}, {"value": 0.9}],
    }
    plan = recipe_of(tmp_path, "breadcrumbs", parameters=parameters)
    assert isinstance(plan.method, Conditional)
    assert plan.method.method_for("attn") == merge_method("breadcrumbs", {"outliers": 0.5, "smallest": 0.3})
    assert plan.method.method_for("mlp") == merge_method("breadcrumbs", {"outliers": 0.0, "smallest": 0.9})
    parameters["smallest"][0]["filter"] = "att"  # what contains "attn" contains it as well
    recipe_of(tmp_path, "breadcrumbs", parameters=parameters)
    parameters["smallest"][0]["filter"] = "attn.qkv"  # what contains "attn" need not contain that
    with pytest.raises(SimoError, match=r"outliers 0\.5 plus smallest 0\.9"):
        recipe_of(tmp_path, "breadcrumbs", parameters=parameters)


def test_every_name_has_a_method_that_was_tried_before(tmp_path: Path) -> None:
    filters = ("a", "ab", "c", "bc", "*")
    conditions = {
        option: [{"filter": text, "value": (i + 1) / 10} for i, text in enumerate(order)]
        for option, order in (("density", filters), ("scale", filters[-2::-1]))
    }
    plan = recipe_of(tmp_path, "ties", parameters=conditions)
    assert isinstance(plan.method, Conditional)
    for name in ("", "a", "b", "c", "ab", "ac", "bc", "abc", "a.b.c", "ab.c"):
        first = {
            option: next((rule["value"] for rule in rules if rule["filter"] in ("*", *_parts(name))), None)
            for option, rules in conditions.items()
        }
        expected = merge_method("ties", {option: value for option, value in first.items() if value is not None})
        assert plan.method.method_for(name) == expected


def _parts(name: str) -> list[str]:
    return [name[i:j] for i in range(len(name)) for j in range(i + 1, len(name) + 1)]


def test_values_behind_one_for_all_parameters_are_not_looked_at(tmp_path: Path) -> None:
    rules = [{"filter": "attn", "value": 0.5}, {"value": 0.3}, {"filter": "mlp", "value": "never"}]
    plan = recipe_of(tmp_path, "task-arithmetic", parameters={"scale": rules})
    assert len(plan.method.parameters()["scale"]) == 2


def test_a_bad_value_of_a_condition_is_found_before_any_work() -> None:
    def build(options: dict[str, Any]) -> MergeMethod:
        return method_named("task-arithmetic", options)

    with pytest.raises(SimoError, match="finite"):
        Conditional(build, {"scale": (Condition(0.5, "attn"), Condition(float("nan")))})
    method = Conditional(build, {"scale": (Condition(0.5, "attn"),)})
    parameter = Parameter("attn", torch.ones(2), (torch.zeros(2),))
    assert method.method_for("attn") == TaskArithmetic(0.5)
    assert torch.equal(method.merge(parameter, method.statistics(lambda: iter([parameter]))), torch.full((2,), 0.5))


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"merge_method": "della"}, r"unknown merge method 'della'; known: .*ties.*, and also dare_linear"),
        ({"slices": []}, r"unknown key slices; known there: merge_method, base_model, models"),
        ({"models": [{"model": "a", "weight": 1}]}, r"unknown key models\.0\.weight; known there: model, parameters"),
        ({"base_model": None}, "has no base_model; give the weights that the models began from"),
        ({"base_model": 3}, "base_model: Input should be a valid string"),
        ({"merge_method": "ties", "parameters": {"gamma": 1}}, "ties has no parameter gamma; it has weight"),
        (
            {"merge_method": "task-arithmetic", "parameters": {"density": 1}},
            "has no option density; its options are scale",
        ),
        ({"merge_method": "weight-average", "parameters": {"scale": 1}}, "has no option scale; it has none"),
        ({"merge_method": "ties", "models": weighted(1.0, 2.0)}, "weight of ties must be the same for all"),
        ({"merge_method": "ties", "models": [*weighted(1.0, density=0.5), {"model": "b"}]}, "some models have density"),
        ({"merge_method": "linear", "parameters": {"normalize": False}}, "use task_arithmetic"),
        ({"merge_method": "lines", "parameters": {"weight": 0.5}}, "lines does not weigh its models"),
        ({"parameters": {"scale": [{"filter": "a"}]}}, "scale: a condition has no value"),
        (
            {"parameters": {"scale": [{"filtr": "a", "value": 1}]}},
            "scale: a condition has no key filtr; its keys are filter, value; did you mean filter",
        ),
        ({"basemodel": "x"}, r"unknown key basemodel; known there: .*, dtype; did you mean base_model\?"),
        (
            {"models": [{"modle": "a"}]},
            r"unknown key models\.0\.modle; known there: model, parameters; did you mean model",
        ),
        ({"merge_method": "tsvm"}, r"unknown merge method 'tsvm'; known: .*; did you mean tsv-m\?"),
        ({"merge_method": "ties", "parameters": {"lamda": 1}}, "ties has no parameter lamda; .*; did you mean lambda"),
        ({"merge_method": "dare_ties", "parameters": {"densty": 1}}, "no parameter densty; .*; did you mean density"),
        ({"merge_method": "ties", "parameters": {"Densities": 1}}, "no parameter Densities; .*; did you mean density"),
        (
            {"merge_method": "tall-masks", "parameters": {"lam": [{"filter": "attn", "value": 0.3}, {"value": 0.4}]}},
            "tall-masks gives every task its own weights, so its options cannot depend on the parameter",
        ),
        (
            {"merge_method": "regmean", "parameters": {"ridge": [{"filter": "attn", "value": 0.3}]}},
            "regmean learns from images, so its options cannot depend",
        ),
        ({"parameters": {"scale": [{"filter": "a", "value": datetime.date(2024, 1, 2)}]}}, "must be a finite number"),
        (
            {"merge_method": "ties", "parameters": {"normalize": False, "lambda": [0.3, 0.4]}},
            "the lambda of ties must be a finite number",
        ),
        (
            {"merge_method": "task_arithmetic", "parameters": {"lambda": [0.3, 0.4], "weight": 0.5}},
            "the lambda of task_arithmetic is a list beside a weight; give one number",
        ),
        (
            {"merge_method": "linear", "models": weighted([{"filter": "attn", "value": 0.3}], 1.0)},
            "the weight of one model is one number here: no list of filters",
        ),
        (
            {"merge_method": "linear", "models": weighted([0.1, 0.9], [0.9, 0.1])},
            "no list of filters or gradient over layers",
        ),
        (
            {"merge_method": "task_arithmetic", "parameters": {"weight": [0.1, 0.9]}},
            "would be a gradient over the layers, which recipes here do not have",
        ),
        ({"merge_method": "dare_ties", "parameters": {"density": "abc"}}, "density of dare_ties must be a finite"),
        ({"merge_method": "breadcrumbs", "parameters": {"gamma": "abc"}}, "gamma of breadcrumbs must be a finite"),
        ({"merge_method": "linear", "parameters": {"weight": "x"}}, "weight of linear must be a finite number, got x"),
        ({"merge_method": "ties", "models": weighted("x", "x")}, "weight of ties must be a finite number"),
        ({"merge_method": "task_arithmetic", "models": weighted("x", 1.0)}, "weight of task_arithmetic must be"),
        (
            {"merge_method": "task_arithmetic", "parameters": {"scale": 1, "lambda": 1}},
            "scale and lambda are one thing",
        ),
    ],
)
def test_what_a_recipe_cannot_say_is_refused(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    whole = {"merge_method": "task-arithmetic", "base_model": "base", "models": weighted(1.0, 1.0), **content}
    if "merge_method" not in content or "models" not in content:
        whole.setdefault("models", [])
    if whole["merge_method"] != "ties" and "models" not in content:
        whole["models"] = [{"model": "a"}, {"model": "b"}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole))
    with pytest.raises(SimoError, match=said):
        read_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(("text", "said"), [("[1, 2]", "must be a mapping"), ("a: [", "not valid YAML")])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SimoError, match=said):
        read_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(SimoError, match="cannot be read"):
        read_recipe(tmp_path / "nowhere.yaml")


# -- every registered method ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MERGE_METHODS))
def test_every_method_can_be_described_and_built_from_its_defaults(name: str) -> None:
    facts = describe_method(name)
    assert facts.purpose.endswith(".")
    assert facts.needs in ("nothing", "images", "images and labels")
    assert method_named(name, option_defaults(name)) == merge_method(name)
    with pytest.raises(SimoError, match=f"{name} has no option no_such"):
        method_named(name, {"no_such": 1})
