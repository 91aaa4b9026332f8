"""Task affinity: experts in, a matrix over pairs of tasks for each measure out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import get_args

import torch

from simo_merge.affinity.inputs import check_labelled, prepared
from simo_merge.affinity.material import Material
from simo_merge.affinity.matrix import AffinityMatrix, Needs
from simo_merge.affinity.measures import MEASURES
from simo_merge.affinity.options import AffinityOptions
from simo_merge.affinity.sweep import LambdaSweep
from simo_merge.data import DenseDataset
from simo_merge.device import resolve_device
from simo_merge.errors import SimoError, nearest
from simo_merge.models import SingleTaskModel
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
        images: two unlabelled images or more, for measures of features; one size.
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
            one image alone; labels of the test split.
    """
    options = options or AffinityOptions()
    wanted = _wanted(measures, images, labelled)
    if images is not None and len(images) < 2 and any(MEASURES[name].needs == "images" for name in wanted):
        raise SimoError(
            f"features are judged on images that are held out, and {len(images)} was given; give two or more"
        )
    base, models = prepared(experts, base, resample_pos_embed)
    if sweep is not None and sweep.tasks != tuple(expert.task.name for expert in experts):
        raise SimoError(f"the sweep given is of {', '.join(sweep.tasks)}, in this order; make one of these experts")
    if labelled is not None and any(MEASURES[name].needs == "labels" for name in wanted):
        check_labelled(labelled, experts)
    material = Material(
        experts=models,
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
