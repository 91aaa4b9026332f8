"""Task affinity: experts in, a matrix over pairs of tasks for each measure out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch

from simo_merge.affinity.material import Material
from simo_merge.affinity.matrix import AffinityMatrix, Needs
from simo_merge.affinity.measures import MEASURES
from simo_merge.affinity.options import AffinityOptions
from simo_merge.affinity.sweep import LAMBDAS, LambdaSweep, swept
from simo_merge.affinity.transfer import Decoders
from simo_merge.data import DenseDataset
from simo_merge.device import resolve_device
from simo_merge.errors import SimoError, nearest
from simo_merge.merging import find_base
from simo_merge.merging.checks import check_base, check_experts
from simo_merge.merging.grids import with_grid_of
from simo_merge.merging.merge import on_cpu
from simo_merge.models import SingleTaskModel
from simo_merge.scoring import BATCH_SIZE, scorable_tasks
from simo_merge.weights import Base


def affinity(
    experts: Sequence[SingleTaskModel],
    base: Base | None = None,
    images: DenseDataset | None = None,
    labelled: DenseDataset | None = None,
    measures: Sequence[str] | None = None,
    options: AffinityOptions | None = None,
    device: str | torch.device | None = None,
    precision: str = "float32",
    seed: int = 0,
    resample_pos_embed: bool = False,
    sweep: LambdaSweep | None = None,
) -> dict[str, AffinityMatrix]:
    """How well the experts' tasks go together in one encoder, by every measure asked for; nothing is trained.

    Features, task vectors and scores are computed once for all measures. The result depends on the arguments alone.

    Args:
        experts: two or more single-task models of one base; they are not changed.
        base: their base; default: found again from what their checkpoints record.
        images: unlabelled images, for measures of features; one size.
        labelled: images with labels for one task or more, for measures of losses and scores; not of the test split.
        measures: names out of `MEASURES`; default: all that these arguments serve.
        options: of the measures.
        device: where to compute; default: the GPU if there is one. Weights are compared on the CPU.
        precision: of the forward passes.
        seed: of the patches that are looked at.
        resample_pos_embed: whether experts of another grid than the base's are brought to it, as in `merge`.
        sweep: of these experts, where it was made before (`lambda_sweep`).

    Returns:
        {name: matrix}, in the order of the registry.

    Raises:
        SimoError: experts that do not belong together, an unknown measure, or one whose images or labels are missing;
            labels of the test split.
    """
    options = options or AffinityOptions()
    wanted = _wanted(measures, images, labelled)
    base, prepared = _prepared(experts, base, resample_pos_embed)
    if sweep is not None and sweep.tasks != tuple(expert.task.name for expert in experts):
        raise SimoError(f"the sweep given is of {', '.join(sweep.tasks)}, in this order; make one of these experts")
    if labelled is not None and any(MEASURES[name].needs == "labels" for name in wanted):
        _check_labelled(labelled, experts)
    material = Material(
        experts=prepared,
        base=base,
        images=images,
        labelled=labelled,
        options=options,
        device=resolve_device(device),
        precision=precision,
        seed=seed,
        asks_decoders="cross-agreement" in wanted,
        known_sweep=sweep,
    )
    return {name: _measured(name, material) for name in wanted}


def lambda_sweep(
    experts: Sequence[SingleTaskModel],
    base: Base | None = None,
    labelled: DenseDataset | None = None,
    lambdas: Sequence[float] = LAMBDAS,
    device: str | torch.device | None = None,
    precision: str = "float32",
    batch_size: int = BATCH_SIZE,
    resample_pos_embed: bool = False,
) -> LambdaSweep:
    """Every expert's decoder on base + lambda * tau_s, for every expert s and lambda: the paper's curves.

    It takes T (L - 2) + T + 1 passes over the labelled images, where 0 and 1 are among the L lambdas.

    Args:
        experts: T single-task models of one base; they are not changed.
        base: their base; default: found again from what their checkpoints record.
        labelled: images with labels for one task or more, not of the test split.
        lambdas: how far to go along each task vector.
        device: where to compute; default: the GPU if there is one.
        precision: of the forward passes.
        batch_size: images at a time.
        resample_pos_embed: as in `merge`.

    Raises:
        SimoError: as `affinity`; no lambda, one twice, or one that is not finite.

    Source: arXiv 2504.11268, section 6.4 and figures 3, 5 and 6.
    """
    base, prepared = _prepared(experts, base, resample_pos_embed)
    if labelled is None:
        raise SimoError("a lambda sweep measures scores; give it labelled images (labelled=...)")
    _check_labelled(labelled, prepared)
    decoders = Decoders(prepared, labelled, resolve_device(device), precision, batch_size)
    return swept(prepared, base, lambdas, decoders)


def _prepared(
    experts: Sequence[SingleTaskModel], base: Base | None, any_grid: bool
) -> tuple[Base, tuple[SingleTaskModel, ...]]:
    """The base, and the experts on the CPU with its grid; those that do not belong together are refused."""
    check_experts(experts, any_grid)
    base = base or find_base(experts)
    check_base(base, experts, any_grid)
    return replace(base, vit=on_cpu(base.vit)), tuple(with_grid_of(base, on_cpu(expert)) for expert in experts)


def _measured(name: str, material: Material) -> AffinityMatrix:
    measure, began = MEASURES[name], time.perf_counter()
    found = measure.compute(material)
    return AffinityMatrix(
        name=name,
        tasks=material.tasks,
        values=found.values,
        symmetric=measure.symmetric,
        needs=measure.needs,
        profile=found.profile,
        images=found.images,
        labels=found.labels,
        seconds=time.perf_counter() - began,
        alone=measure.alone,
    )


def _wanted(measures: Sequence[str] | None, images: DenseDataset | None, labelled: DenseDataset | None) -> list[str]:
    """The names to compute, in the order of the registry."""
    given = {"weights": True, "images": images is not None, "labels": labelled is not None}
    assert set(given) == set(get_args(Needs))
    if measures is None:
        return [name for name, measure in MEASURES.items() if given[measure.needs]]
    unknown = [name for name in measures if name not in MEASURES]
    if unknown:
        raise SimoError(
            f"unknown affinity measure(s) {', '.join(unknown)}; known: {', '.join(MEASURES)}"
            f"{nearest(unknown, MEASURES)}"
        )
    if not measures:
        raise SimoError(f"no affinity measure was asked for; known: {', '.join(MEASURES)}")
    lacking = [name for name in measures if not given[MEASURES[name].needs]]
    if lacking:
        needs = MEASURES[lacking[0]].needs
        argument = "labelled" if needs == "labels" else "images"
        raise SimoError(f"{', '.join(lacking)}: needs {needs}; give them ({argument}=...), or leave the measure out")
    return [name for name in MEASURES if name in measures]


def _check_labelled(labelled: DenseDataset, experts: Sequence[SingleTaskModel]) -> None:
    if labelled.split == "test":
        raise SimoError(
            f"affinity does not look at the labels of {labelled.name} ({labelled.split}), which are for the last word "
            "only; take another split"
        )
    scorable_tasks({expert.task.name: expert.task for expert in experts}, labelled)
