"""Recipes in files: read, merged with what a trial or the command line replaces, and checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bench.recipe import Affinity, Align, Recipe
from simo_merge.affinity import MEASURES, AffinityOptions
from simo_merge.affinity.grouping import check_encoders
from simo_merge.errors import SimoError, nearest
from simo_merge.merging import merge_method
from simo_merge.metrics import find_protocol
from simo_merge.training import TrainConfig

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def read_recipe(path: str | Path, quick: bool = False, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file.

    Args:
        path: the file. Its key `quick` holds what replaces the rest for a trial.
        quick: whether it does: mappings are merged key by key, anything else is replaced.
        overrides: what replaces both, in the same way.

    Raises:
        SimoError: no such file, no YAML, an unknown key or method, or a value that is refused.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SimoError(f"recipe {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SimoError(
            f"recipe {path} holds {type(content).__name__}, expected keys: {', '.join(Recipe.model_fields)}"
        )
    trial = content.pop("quick", None) or {}
    content = merged_over(merged_over(content, trial if quick else {}), overrides or {})
    try:
        recipe = Recipe.model_validate(content)
        check(recipe)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        hint = nearest(str(problem["loc"][-1]), Recipe.model_fields) if problem["type"] == "extra_forbidden" else ""
        raise SimoError(f"recipe {path}, {where}: {problem['msg']}{hint}") from None
    except SimoError as error:
        raise SimoError(f"recipe {path}: {error}") from None
    return recipe


def check(recipe: Recipe) -> None:
    """Refuse, before anything is trained, methods and options that would be refused after hours.

    Raises:
        SimoError: the first of them.
    """
    for options in (recipe.training, recipe.joint.training, recipe.quality.fine_tuning if recipe.quality else {}):
        _check_training(options)
    for use in ("train", "calibration", "validation"):
        if recipe.data.test in getattr(recipe.data, use).split("+"):
            raise SimoError(
                f"data.{use} is {getattr(recipe.data, use)!r}, the test split; nothing is fitted or chosen on it"
            )
    recipe.train_config(0)
    find_protocol(recipe.protocol)
    for row in recipe.joint.rows:
        recipe.joint_config(row, 0)
    for merge in recipe.merges:
        for option, values in merge.choose.items():
            for value in values:
                merge_method(merge.method, merge.options | {option: value})
        merge.made()
        for name in merge.align or ():
            recipe.alignment(name)
    for names in (recipe.align_experts, *(row.align for row in recipe.joint.rows)):
        for name in names:
            recipe.alignment(name)
    for what, names in {
        "merges": [merge.name for merge in recipe.merges],
        "align": [align.name for align in recipe.align],
        "joint.rows": [row.name for row in recipe.joint.rows],
        "samples.align": [align.name for align in recipe.samples.align] if recipe.samples else [],
        "scaling.align": [align.name for align in recipe.scaling.align] if recipe.scaling else [],
    }.items():
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SimoError(f"{what} has {', '.join(twice)} twice; give one of them a label")
    others = {"experts", "base", *(row.name for row in recipe.joint.rows)}
    for merge in recipe.merges:
        if merge.name in others:
            raise SimoError(f"merges has {merge.name}, which another row is called; give it another label")
    _check_parts(recipe)


def _check_training(options: Mapping[str, Any]) -> None:
    known = {field.name for field in fields(TrainConfig)} - {"seed"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise SimoError(f"unknown training option(s) {', '.join(unknown)}{nearest(unknown, known)}")


def _check_parts(recipe: Recipe) -> None:
    """What the scripts' own parts name is there, and re-alignments can be made."""
    for part in filter(None, (recipe.budget, recipe.samples, recipe.scaling, recipe.affinity)):
        recipe.merge(part.merge)
    aligned = [*recipe.align, *(recipe.samples.align if recipe.samples else ())]
    aligned += recipe.scaling.align if recipe.scaling else ()
    if recipe.affinity:
        _check_affinity(recipe.affinity)
        aligned.append(recipe.affinity.align)
    for align in aligned:
        align.made()
    _check_counts(recipe, aligned)
    joint = [*(recipe.samples.joint if recipe.samples else ()), *(recipe.scaling.joint if recipe.scaling else ())]
    for curve in recipe.budget.curves if recipe.budget else ():
        if curve.method.startswith("joint-"):
            joint.append(curve.method)
        else:
            for steps in curve.steps or (None,):
                Align(method=curve.method, options=curve.options).made(steps)
    joint += [recipe.affinity.joint] if recipe.affinity and recipe.affinity.joint else []
    for name in joint:
        recipe.weighted(name)
    if recipe.quality is not None:
        for name in recipe.quality.base:
            recipe.alignment(name)
        if recipe.quality.fine_tuned is not None:
            recipe.merge(recipe.quality.fine_tuned)
        recipe.fine_tuning_config(0)


def _check_counts(recipe: Recipe, aligned: Sequence[Align]) -> None:
    """A re-alignment's own numbers of images are some of the curve's; elsewhere there is no curve."""
    curve = {id(align) for align in (recipe.samples.align if recipe.samples else ())}
    for align in aligned:
        if align.after is not None and align.after.counts is not None:
            raise SimoError(f"counts are those of {align.name}, not of what it comes after")
        known = recipe.samples.counts if recipe.samples and id(align) in curve else ()
        unknown = [str(count) for count in align.counts or () if count not in known]
        if unknown:
            some = f"some of {', '.join(map(str, known))}" if known else "for the curve alone, `samples.align`"
            raise SimoError(f"{align.name} has the counts {', '.join(unknown)}; they are {some}")


def _check_affinity(affinity: Affinity) -> None:
    unknown = sorted(set(affinity.measures or ()) - set(MEASURES))
    if unknown:
        raise SimoError(f"unknown affinity measure(s) {', '.join(unknown)}; known: {', '.join(MEASURES)}")
    known = {field.name for field in fields(AffinityOptions)} - {"merge"}  # the part's own merge is the measures', too
    unknown = sorted(set(affinity.options) - known)
    if unknown:
        raise SimoError(f"unknown affinity option(s) {', '.join(unknown)}{nearest(unknown, known)}")
    AffinityOptions(**affinity.options)
    if len(affinity.tasks) < 3:
        raise SimoError(f"affinity is about three tasks or more, got {', '.join(affinity.tasks)}")
    for room in affinity.encoders:
        check_encoders(affinity.tasks, room)


def merged_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`: mappings key by key, anything else as a whole."""
    both = dict(below)
    for key, value in above.items():
        mappings = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged_over(both[key], value) if mappings else value
    return both
