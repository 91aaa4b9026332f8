"""Choosing the options of a merge method."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from simo_merge.data import DenseDataset
from simo_merge.device import resolve_device
from simo_merge.errors import SimoError
from simo_merge.merging import DataMergeMethod, MergeMethod, find_base
from simo_merge.models import SingleTaskModel
from simo_merge.selection.candidates import (
    Candidate,
    MethodSelection,
    best,
    check_options,
    describe,
    grid,
    with_options,
)
from simo_merge.selection.criteria import Criterion
from simo_merge.selection.in_place import InPlaceMerge
from simo_merge.selection.search import Search
from simo_merge.weights import Base, fingerprint

_LOG = logging.getLogger(__name__)


def select(
    experts: Sequence[SingleTaskModel],
    method: MergeMethod,
    space: Mapping[str, Sequence[Any]] | Search,
    criterion: Criterion,
    base: Base | None = None,
    images: DenseDataset | None = None,
    device: str | torch.device | None = None,
    precision: str = "float32",
    seed: int = 0,
    resample_pos_embed: bool = False,
) -> MethodSelection:
    """Choose the options of a merge method by what they are worth.

    Model, images and what the experts make of them are built once; every candidate's merged weights are written into
    the model in place.

    Args:
        experts: as for `merging.merge`; they are not changed.
        method: options that are not in `space` are taken from it.
        space: option -> values, of which every combination is tried; or a `Search`.
        criterion: `ValidationDelta` or `Agreement`.
        base: the base weights; default: found again from what the experts' checkpoints record.
        images: calibration images, for methods that learn from them.
        device: where to compute; default: the GPU if there is one.
        precision: of the forward passes.
        seed: of what a method that learns draws at random.
        resample_pos_embed: as for `merging.merge`.

    Raises:
        SimoError: nothing to choose from, options that the method does not have or refuses, images of the test split,
            no finite score, or as `merging.merge` and the criterion. Of a search, candidates that the method refuses
            are left out, and told; only where it refuses all is the search.
    """
    began = time.perf_counter()
    for data in (*criterion.datasets, images):
        if data is not None and data.split == "test":
            raise SimoError(
                f"nothing is chosen on the test split, and {data.name} (test) is one; give a validation split or "
                "calibration images"
            )
    combinations = None if isinstance(space, Search) else grid(space)
    for options in combinations or []:
        with_options(method, options)  # refuse what cannot be before anything is computed
    if isinstance(space, Search):
        check_options(method, space.space)
    base = base or find_base(experts)
    where = resolve_device(device)
    merged = InPlaceMerge(experts, base, images, where, precision, seed, resample_pos_embed)
    scorer = criterion.prepare(experts, where, precision)

    refused: list[SimoError] = []

    def evaluate(options: Mapping[str, Any]) -> Candidate:
        start = time.perf_counter()
        try:
            asked = with_options(method, options)
        except SimoError as refusal:  # in a search alone: a grid was checked before
            _LOG.warning("left out, %s: %s", describe(options), refusal)
            refused.append(refusal)
            return Candidate(dict(options), math.nan, time.perf_counter() - start)
        model = merged(asked)
        value = scorer(model, f"candidate {describe(options)}")
        return Candidate(dict(options), float(value), time.perf_counter() - start)

    if isinstance(space, Search):
        question = _question(experts, base, method, space, criterion) | {"precision": precision, "seed": str(seed)}
        if isinstance(method, DataMergeMethod):
            question["calibration"] = "none" if images is None else _identity(images)
        candidates = space.run(evaluate, question)
        if refused and not any(math.isfinite(candidate.score) for candidate in candidates):
            raise SimoError(f"{method.name} refuses every candidate of the search, the last because {refused[-1]}")
    else:
        candidates = [evaluate(options) for options in combinations or []]
    chosen = best(candidates, criterion.label)
    told = "; ".join(f"{describe(c.options)}: {c.score:.3f}" for c in candidates)
    _LOG.info("%s: %s chosen by %s (%s)", method.name, describe(chosen.options), criterion.label, told)
    return MethodSelection(
        with_options(method, chosen.options),
        chosen.options,
        tuple(candidates),
        criterion.label,
        time.perf_counter() - began,
    )


def _question(
    experts: Sequence[SingleTaskModel], base: Base, method: MergeMethod, search: Search, criterion: Criterion
) -> dict[str, str]:
    """What a stored study is about: scores of another question must not be mixed in."""
    fixed = {name: value for name, value in method.parameters().items() if name not in search.space}
    return {
        "method": f"{method.name} {fixed}",
        "criterion": criterion.label,
        **criterion.settings,
        "images": ", ".join(_identity(data) for data in criterion.datasets),
        "base": base.sha256,
        "experts": ", ".join(f"{e.task.name} {fingerprint(e.state_dict())[:12]}" for e in experts),
    }


def _identity(data: DenseDataset) -> str:
    """A data set by name, split and number of images, and by which images these are."""
    keys = hashlib.sha256("\n".join(data.keys).encode()).hexdigest()
    return f"{data.name} ({data.split}, {len(data)}, {keys[:12]})"
