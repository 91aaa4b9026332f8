"""What a model's record says of re-alignments: whether another may follow, and what both cost together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel
from simo_merge.realign.realignment import Realignment

IN_ENCODER = "in_encoder"
"""In a record: the encoder was changed, for all tasks or for each, and an aligner may follow."""


def inside(method: Realignment) -> bool:
    """Whether a method changes the encoder, for all tasks or for each."""
    return method.changes_encoder or method.task_specific


def record_before(model: MultiTaskModel, method: Realignment) -> Mapping[str, Any] | None:
    """The record of a re-alignment inside the encoder, after which the method may follow; None where there is none.

    Raises:
        SimoError: a model that is aligned otherwise, or inside the encoder where the method changes that too.
    """
    record = model.merge.alignment if model.merge is not None else None
    if not record and not len(model.aligners) and not (model.block_changes and inside(method)):
        return None
    if record and record.get(IN_ENCODER) and not len(model.aligners) and not inside(method):
        return record
    raise SimoError("this model is aligned already; re-align the merged model that it was made from")


def record_after(before: Mapping[str, Any] | None, alignment: dict[str, Any]) -> dict[str, Any]:
    """The record of a re-alignment that followed another: costs are those of both, the first one's record is kept."""
    if before is None:
        return alignment
    both = {name: before[name] + alignment[name] for name in ("trainable_parameters", "fit_seconds")}
    most = {name: max(before[name], alignment[name]) for name in ("images", "labels")}
    method = f"{before['method']}+{alignment['method']}"
    return {**alignment, **both, **most, "method": method, "before": dict(before)}
