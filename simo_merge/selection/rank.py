"""Whether two scores put the same candidates into the same order."""

from __future__ import annotations

import json
import math

from simo_merge.errors import SimoError
from simo_merge.metrics.ranks import spearman
from simo_merge.selection.candidates import MethodSelection


def rank_agreement(first: MethodSelection, second: MethodSelection) -> float:
    """Spearman's rho between the scores of the same candidates under two criteria.

    1: the same order; -1: the opposite one; NaN where a criterion gives all candidates one score. Of a label-free
    score and delta on a validation split it says whether the former chooses as the latter would. Candidates without a
    finite score under both are left out.

    Raises:
        SimoError: different candidates, or fewer than two with finite scores.
    """
    ours, theirs = (
        {json.dumps(dict(c.options), sort_keys=True): c.score for c in found.candidates} for found in (first, second)
    )
    if ours.keys() != theirs.keys():
        apart = sorted(ours.keys() ^ theirs.keys())
        raise SimoError(
            f"the selections tried different candidates ({len(ours)} and {len(theirs)}): {apart[0]} is in one of them "
            "only; score the same grid by both criteria"
        )
    both = [key for key in ours if math.isfinite(ours[key]) and math.isfinite(theirs[key])]
    if len(both) < 2:
        raise SimoError(f"an order needs two candidates or more with finite scores, there are {len(both)}")
    return spearman([ours[key] for key in both], [theirs[key] for key in both])
