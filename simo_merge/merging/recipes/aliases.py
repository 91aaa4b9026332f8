"""Merge methods by the names and parameters that other tools give them.

| there | here |
| --- | --- |
| `linear`, weight w_t | `weight-average`; with different weights `preference-soup`: sum_t w_t theta_t / sum_t w_t |
| `task_arithmetic`, weight w_t, lambda | `task-arithmetic`, scale lambda w_t |
| `ties`, density, lambda | `ties` trimmed within each tensor; all weights must be equal |
| `dare_linear`, `dare_ties`, density, weight, lambda | `dare`, drop 1 - density, scale lambda w_t |
| `breadcrumbs`, density, gamma, weight, lambda | `breadcrumbs`, outliers gamma, smallest 1 - density - gamma |
| `slerp` of the base and another model, t | `slerp` between their weights |

Every method of ours goes by its own name too, with its own options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from simo_merge.errors import SimoError, nearest
from simo_merge.merging.describe import method_named
from simo_merge.merging.method import MergeMethod
from simo_merge.merging.options import finite, per_task
from simo_merge.merging.recipes.conditional import Condition, Conditional
from simo_merge.merging.registry import MERGE_METHODS

Options = dict[str, Any]


def method_from_recipe(name: str, parameters: Mapping[str, Any], of_models: Sequence[Mapping[str, Any]]) -> MergeMethod:
    """The method that a recipe asks for.

    Args:
        name: one of ours, or a usual one (underscores or hyphens).
        parameters: for all models; a value may be a list of `{filter: text, value: ...}`.
        of_models: for each model, in their order.

    Raises:
        SimoError: an unknown method (the known ones are listed), or parameters that it does not have.
    """
    if isinstance(parameters.get("weight"), list) and not any(isinstance(w, dict) for w in parameters["weight"]):
        raise SimoError(
            "a list as the weight of all models would be a gradient over the layers, which recipes here do not have; "
            "give each model its weight, or a weight for each filter"
        )
    build = partial(_build, name, _per_model(of_models))
    conditions = {option: _conditions(option, value) for option, value in parameters.items()}
    if all(len(found) == 1 and found[0].filter == "*" for found in conditions.values()):
        return build({option: found[0].value for option, found in conditions.items()})
    return Conditional(build, conditions)


def _build(name: str, of_models: Options, given: Options) -> MergeMethod:
    """The method, from parameters for all models and, for each model, lists."""
    options = {**given, **of_models}
    alias = name.replace("-", "_")
    if alias in ALIASES and not _is_ours(name, options):
        ours, translated = ALIASES[alias](dict(options))
        return method_named(ours, translated)
    plain = name.replace("_", "-")
    if plain not in MERGE_METHODS:
        usual = sorted(set(ALIASES) - {kind.replace("-", "_") for kind in MERGE_METHODS})
        raise SimoError(
            f"unknown merge method {name!r}; known: {', '.join(sorted(MERGE_METHODS))}, and also {', '.join(usual)}"
            f"{nearest(name, [*MERGE_METHODS, *usual])}"
        )
    if "weight" in options:
        raise SimoError(f"{plain} does not weigh its models; its options go into the recipe's parameters")
    return method_named(plain, options)


def _is_ours(name: str, options: Options) -> bool:
    """Whether a name that both have is meant as ours: it is spelt so and no parameter is another tool's."""
    theirs = {"weight", "lambda", "gamma", "normalize", "int8_mask"}
    if name == "breadcrumbs":
        theirs.add("density")  # ours says what is dropped at both ends; `ties` has a density of its own
    return name in MERGE_METHODS and not options.keys() & theirs


def _conditions(option: str, value: Any) -> tuple[Condition, ...]:
    if not (isinstance(value, list) and value and all(isinstance(item, dict) for item in value)):
        return (Condition(value),)
    for item in value:
        unknown = [str(key) for key in item if key not in ("filter", "value")]
        if unknown:
            raise SimoError(
                f"{option}: a condition has no key {', '.join(unknown)}; its keys are filter, value"
                f"{nearest(unknown, ('filter', 'value'))}"
            )
        if "value" not in item:
            raise SimoError(f"{option}: a condition has no value; give it one beside its filter")
    return tuple(Condition(item["value"], str(item.get("filter") or "*")) for item in value)


def _per_model(of_models: Sequence[Mapping[str, Any]]) -> Options:
    """Parameters of the models as one value where all have the same, else as a list."""
    names = dict.fromkeys(name for own in of_models for name in own)
    found: Options = {}
    for name in names:
        values = [own.get(name, 1.0 if name == "weight" else None) for own in of_models]
        if any(isinstance(value, list) for value in values):
            raise SimoError(
                f"the {name} of one model is one number here: no list of filters or gradient over layers; filters can "
                "stand in parameters"
            )
        if None in values:
            raise SimoError(f"some models have {name} and some have not; give it to each, or once in parameters")
        found[name] = values if name == "weight" else _same(name, values)
    return found


def _same(name: str, values: Sequence[Any]) -> Any:
    if any(value != values[0] for value in values):
        raise SimoError(f"{name} must be the same for all models, got {', '.join(map(str, values))}")
    return values[0]


# -- the names of other tools -----------------------------------------------------------------------------------


def _linear(options: Options) -> tuple[str, Options]:
    _only("linear", options, "weight", "normalize")
    if options.get("normalize", True) is not True:
        raise SimoError("linear without normalize is no average; use task_arithmetic")
    weights = per_task("linear", "weight", options.get("weight", 1.0))
    if not isinstance(weights, tuple) or len(set(weights)) == 1:
        return "weight-average", {}
    return "preference-soup", {"weights": weights}


def _task_arithmetic(options: Options) -> tuple[str, Options]:
    _only("task_arithmetic", options, "weight", "lambda", "scale")
    return "task-arithmetic", {"scale": _scale("task_arithmetic", options)}


def _ties(options: Options) -> tuple[str, Options]:
    _only("ties", options, "weight", "lambda", "scale", "density", "normalize", "int8_mask")
    weights = per_task("ties", "weight", options.pop("weight", 1.0))
    weight = _same("the weight of ties", weights) if isinstance(weights, tuple) else weights
    scale = finite("ties", "lambda", _scale("ties", options))
    trimmed = {"density": options.get("density", 1.0), "trim": "per_tensor"}
    if options.get("normalize", True) is not True:
        return "ties", {**trimmed, "combine": "sum", "scale": scale * weight}
    return "ties", {**trimmed, "scale": scale}


def _dare(combine: str, options: Options) -> tuple[str, Options]:
    name = f"dare_{combine}"
    _only(name, options, "weight", "lambda", "scale", "density", "seed", "normalize", "int8_mask")
    if options.get("normalize", False):
        raise SimoError(f"{name} does not normalise here; leave normalize out and divide the weights")
    drop = 1 - finite(name, "density", options.get("density", 1.0))
    return "dare", {"drop": drop, "combine": combine, "scale": _scale(name, options), "seed": options.get("seed", 0)}


def _breadcrumbs(options: Options) -> tuple[str, Options]:
    _only("breadcrumbs", options, "weight", "lambda", "scale", "density", "gamma", "normalize")
    gamma = finite("breadcrumbs", "gamma", options.get("gamma", 0.01))
    density = finite("breadcrumbs", "density", options.get("density", 0.9))
    smallest = round(1 - density - gamma, 12)  # 1 - 0.9 - 0.1 must be 0
    return "breadcrumbs", {"outliers": gamma, "smallest": smallest, "scale": _scale("breadcrumbs", options)}


ALIASES: dict[str, Callable[[Options], tuple[str, Options]]] = {
    "linear": _linear,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
    "dare_linear": partial(_dare, "linear"),
    "dare_ties": partial(_dare, "ties"),
    "breadcrumbs": _breadcrumbs,
}


def _scale(name: str, options: Options) -> Any:
    """lambda w_t; `scale` is what we call lambda, and it may be a list as ours are where all weights are 1."""
    if "scale" in options and "lambda" in options:
        raise SimoError("scale and lambda are one thing; give one of them")
    said = "scale" if "scale" in options else "lambda"
    weights = per_task(name, "weight", options.get("weight", 1.0))
    if isinstance(options.get(said), list):
        if set(weights if isinstance(weights, tuple) else (weights,)) != {1.0}:
            raise SimoError(f"the {said} of {name} is a list beside a weight; give one number, or leave weight out")
        return options[said]
    factor = finite(name, said, options.get(said, 1.0))
    if not isinstance(weights, tuple):
        return factor * weights
    scales = tuple(factor * weight for weight in weights)
    return scales[0] if len(set(scales)) == 1 else scales


def _only(name: str, options: Options, *known: str) -> None:
    unknown = [option for option in options if option not in known]
    if unknown:
        raise SimoError(
            f"{name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}{nearest(unknown, known)}"
        )
