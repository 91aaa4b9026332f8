"""Choosing the options of a merge: on a validation split, or without labels."""

from simo_merge.metrics.ranks import spearman
from simo_merge.selection.candidates import Candidate, MethodSelection
from simo_merge.selection.criteria import Agreement, Criterion, ValidationDelta
from simo_merge.selection.rank import rank_agreement
from simo_merge.selection.scale import SCALES, Selection, select_by_agreement, select_by_validation
from simo_merge.selection.search import Range, Search
from simo_merge.selection.select import select

__all__ = [
    "SCALES",
    "Agreement",
    "Candidate",
    "Criterion",
    "MethodSelection",
    "Range",
    "Search",
    "Selection",
    "ValidationDelta",
    "rank_agreement",
    "select",
    "select_by_agreement",
    "select_by_validation",
    "spearman",
]
