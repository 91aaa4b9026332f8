"""Recipes small enough for a test, and made-up rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bench.recipe_file import RECIPES, merged_over
from simo_merge.results import ResultRow

CLOSED_FORM = {"method": "surgery-closed-form", "options": {"rank": 4, "stretch": "none"}}
HEAD = {"method": "head", "options": {"steps": 2}}
SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"train": "train", "calibration": "calibration", "validation": "val", "test": "test"},
    "tasks": ["segmentation", "depth", "normals"],
    "encoder": {"name": "test_vit", "weights": "random"},
    "batch_size": 4,
    "precision": "float32",
    "seeds": [0],
    "training": {"decoder": "linear", "decoder_steps": 2, "steps": 2, "batch_size": 2, "encoder_lr": 1e-3},
    "joint": {"training": {"steps": 4}, "rows": [{"weighting": "equal", "align": ["head"]}]},
    "merges": [
        {"method": "task-arithmetic", "choose": {"scale": [0.2, 0.5]}, "by": "validation"},
        {"method": "weight-average"},
    ],
    "align": [CLOSED_FORM, HEAD],
    "align_experts": ["surgery-closed-form", "head"],
    "budget": {
        "merge": "task-arithmetic",
        "curves": [
            {"method": "joint-equal", "steps": [3, 6]},
            {"method": "head", "steps": [1, 3]},
            {"method": "surgery", "options": {"rank": 4}, "steps": [2]},
            {"method": "surgery-closed-form", "options": {"rank": 4, "stretch": "none"}},
        ],
    },
    "samples": {
        "merge": "weight-average",
        "counts": [2, 4, 50],
        "align": [
            {"method": "surgery-closed-form", "options": {"rank": 4, "stretch": "none"}},
            {"method": "head", "options": {"steps": 2}},
        ],
        "joint": ["joint-equal"],
    },
    "scaling": {
        "tasks": ["segmentation", "depth", "normals"],
        "merge": "weight-average",
        "align": [CLOSED_FORM],
        "joint": ["joint-equal"],
        "joint_sizes": [2],
    },
    "affinity": {
        "tasks": ["segmentation", "depth", "normals"],
        "merge": "weight-average",
        "align": CLOSED_FORM,
        "encoders": [2],
        "options": {"surgery_rank": 4, "lambdas": [0.0, 1.0], "pair_images": 4},
        "joint": "joint-equal",
        "joint_steps": 3,
    },
}


def write_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """The small recipe with changes, key by key."""
    path.write_text(yaml.safe_dump(merged_over(copy.deepcopy(SMALL), changes or {})), encoding="utf-8")
    return path


def shrunk(name: str, path: Path, splits: Mapping[str, str], options: Mapping[str, str] | None = None) -> Path:
    """The committed recipe of a data set, its rows as they are but for sizes, over splits that a small copy has."""
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    content = merged_over(content, content.pop("quick"))
    content["data"] = {**splits, "options": dict(options or {})}
    small = {key: SMALL[key] for key in ("encoder", "batch_size", "training", "joint", "seeds")}
    content |= small
    content["merges"] = [merge | {"choose": {}} if merge["method"] == "ties" else merge for merge in content["merges"]]
    content["align"] = SMALL["align"]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def made_up(method: str, delta: float, **changes: Any) -> ResultRow:
    """A row as a script would write it, with two tasks."""
    row = ResultRow(
        method=method,
        data="small",
        split="test",
        protocol="pooled",
        tasks=("segmentation", "depth"),
        seed=0,
        per_task={"segmentation": {"miou": 0.5}, "depth": {"abs": 0.25}},
        delta_ratio=delta,
        delta_eq2=delta,
        labels=0,
        images=0,
        encoder_passes=1,
        trainable_parameters=10,
        fit_seconds=1.0,
        merge_seconds=math.nan,
        recipe=f"{method} {delta} {sorted(changes.items())}",
    )
    return replace(row, **changes)
