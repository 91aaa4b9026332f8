"""Experts and labels as measures take them: those that do not belong together are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simo_merge.data import DenseDataset
from simo_merge.errors import SimoError
from simo_merge.merging import find_base
from simo_merge.merging.checks import check_base, check_experts
from simo_merge.merging.grids import with_grid_of
from simo_merge.merging.merge import on_cpu
from simo_merge.models import SingleTaskModel
from simo_merge.scoring import scorable_tasks
from simo_merge.weights import Base


def prepared(
    experts: Sequence[SingleTaskModel], base: Base | None, any_grid: bool
) -> tuple[Base, tuple[SingleTaskModel, ...]]:
    """The base, and the experts on the CPU with its grid.

    experts: two or more. base: default: the one that their checkpoints record. any_grid: whether experts of another
    grid of position embeddings are brought to the base's.

    Raises:
        SimoError: experts that do not belong together, or a base that is not theirs or cannot be found.
    """
    check_experts(experts, any_grid)
    base = base or find_base(experts)
    check_base(base, experts, any_grid)
    return replace(base, vit=on_cpu(base.vit)), tuple(with_grid_of(base, on_cpu(expert)) for expert in experts)


def check_labelled(labelled: DenseDataset, experts: Sequence[SingleTaskModel]) -> None:
    """Refuse labels that are not to be looked at, or that are of no task of the experts.

    Raises:
        SimoError: the test split, no task in common, or tasks of another meaning.
    """
    if labelled.split == "test":
        raise SimoError(
            f"affinity does not look at the labels of {labelled.name} ({labelled.split}), which are for the last word "
            "only; take another split"
        )
    scorable_tasks({expert.task.name: expert.task for expert in experts}, labelled)
