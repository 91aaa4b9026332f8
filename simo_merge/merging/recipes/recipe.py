"""A merge of files as a YAML file, in the form that users of merging tools know.

merge_method: ties                # a name of ours, or a usual one: linear, task_arithmetic, dare_ties, ...
base_model: base.safetensors
models:
  - model: seg.safetensors
    parameters: {weight: 1.0}
  - model: depth.safetensors
parameters:
  density: 0.2
  scale:
    - {filter: attn, value: 0.5}  # for parameters whose names contain it; the first that holds
    - {value: 0.3}
dtype: float16                    # of the output
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simo_merge.errors import SimoError, nearest
from simo_merge.merging.method import MergeMethod
from simo_merge.merging.recipes.aliases import method_from_recipe


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecipeModel(_Strict):
    """One model of a recipe: where its weights lie, and its own parameters."""

    model: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class Recipe(_Strict):
    """The whole of a recipe file."""

    merge_method: str
    base_model: str | None = None
    models: list[RecipeModel]
    parameters: dict[str, Any] = Field(default_factory=dict)
    dtype: str | None = None


@dataclass(frozen=True)
class FileMerge:
    """What a recipe asks for: what to merge, how, and the type of the output."""

    base: Path
    experts: tuple[Path, ...]
    method: MergeMethod
    dtype: str | None = None


def read_recipe(path: str | Path) -> FileMerge:
    """Read a recipe file. Paths in it are relative to its folder, or else to the current one.

    Raises:
        SimoError: no such file, no YAML, keys that are not known (those that are are listed), no base where it
            matters, or a method or parameters that are not known.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SimoError(f"the recipe {path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SimoError(f"the recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error
    recipe = _validated(content, path)
    base, places = _base(recipe, path), [_place(model.model, path.parent) for model in recipe.models]
    listed = list(zip(places, (model.parameters for model in recipe.models), strict=True))
    # Other tools list the base among the models too, where it has no part in the sum of task vectors.
    models = [(place, own) for place, own in listed if place.resolve() != base.resolve()]
    parameters = recipe.parameters
    if recipe.merge_method == "linear":  # an average of weights, in which the base counts if it is listed
        models = listed
    elif recipe.merge_method == "slerp" and len(models) == 1:  # between weights: the base's task vector is zero
        models = [(base, {}), *models]
        parameters = {"between": "weights", **parameters}
    method = method_from_recipe(recipe.merge_method, parameters, [own for _, own in models])
    return FileMerge(base, tuple(place for place, _ in models), method, recipe.dtype)


def _base(recipe: Recipe, path: Path) -> Path:
    """The base; the first model takes its place where any does, because an average of weights does not depend on it."""
    if recipe.base_model is not None:
        return _place(recipe.base_model, path.parent)
    if recipe.merge_method != "linear" or not recipe.models:
        raise SimoError(
            f"the recipe {path} has no base_model; give the weights that the models began from (only linear, with "
            "models, goes without)"
        )
    return _place(recipe.models[0].model, path.parent)


def _validated(content: object, path: Path) -> Recipe:
    if not isinstance(content, dict):
        raise SimoError(f"the recipe {path} must be a mapping with the keys {', '.join(Recipe.model_fields)}")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        # A key that is not known comes first: it is often one that is missed, misspelt.
        found = error.errors(include_url=False)
        problem = next((entry for entry in found if entry["type"] == "extra_forbidden"), found[0])
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] != "extra_forbidden":
            raise SimoError(f"the recipe {path}: {where}: {problem['msg']}") from None
        known = (Recipe if len(problem["loc"]) == 1 else RecipeModel).model_fields
        raise SimoError(
            f"the recipe {path} has an unknown key {where}; known there: {', '.join(known)}"
            f"{nearest(str(problem['loc'][-1]), known)}"
        ) from None


def _place(name: str, folder: Path) -> Path:
    return folder / name if (folder / name).exists() else Path(name)
