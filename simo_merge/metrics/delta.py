"""Relative performance Δ against single-task models, in percent; positive is better.

Two forms are in use and they differ as soon as a lower-is-better score grows a lot, so each has its own name.
`delta_ratio` is what the tables of the SIMO paper (arXiv 2504.11268) report; `delta_eq2` is what its equation
(2) and most multi-task papers print.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from simo_merge.errors import SimoError


def gain_ratio(score: float, baseline: float, higher_is_better: bool) -> float:
    """One task's term of `delta_ratio` in percent.

    100 · (r − 1), with r = M_m/M_b where higher is better and r = M_b/M_m where lower is.

    Raises:
        SimoError: When the baseline is not positive, or a score that divides is not.
    """
    _check_scores(score, baseline)
    if higher_is_better:
        return 100.0 * (score / baseline - 1.0)
    if score == 0:
        raise SimoError(
            "an error of 0 has an infinite ratio to its baseline; "
            "check that predictions and targets are not the same tensor, or report delta_eq2"
        )
    return 100.0 * (baseline / score - 1.0)


def gain_eq2(score: float, baseline: float, higher_is_better: bool) -> float:
    """One task's term of `delta_eq2` in percent.

    100 · (M_m − M_b)/M_b where higher is better, its negative where lower is.

    Raises:
        SimoError: When the baseline is not positive.
    """
    _check_scores(score, baseline)
    gain = 100.0 * (score - baseline) / baseline
    return gain if higher_is_better else -gain


def delta_ratio(
    scores: Mapping[str, float], baseline: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> float:
    """Δ = 100/T · Σ_t (r_t − 1) percent, r_t = M_m/M_b where higher is better, M_b/M_m where lower is.

    This form reproduces the published tables of "Single-Input Multi-Output Model Merging" (arXiv 2504.11268)
    from their own cells. It is bounded below by −100, so one collapsed task cannot hide the others.

    Args:
        scores: Primary score of the multi-task model by task, M_m.
        baseline: Score of the single-task models by task, M_b; the same tasks.
        higher_is_better: Direction by task; may name further tasks.

    Raises:
        SimoError: When there is no task, the task sets differ, a baseline is not positive, or an error is 0.
    """
    return _mean_gain(gain_ratio, scores, baseline, higher_is_better)


def delta_eq2(
    scores: Mapping[str, float], baseline: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> float:
    """Δ = 100/T · Σ_t (−1)^{l_t} (M_m − M_b)/M_b percent, l_t = 1 where lower is better.

    Maninis et al., "Attentive Single-Tasking of Multiple Tasks", CVPR 2019; equation (2) of arXiv 2504.11268.
    Nash-MTL, CAGrad and FAMO print the opposite sign, averaged over metrics instead of tasks.

    Args:
        scores: Primary score of the multi-task model by task, M_m.
        baseline: Score of the single-task models by task, M_b; the same tasks.
        higher_is_better: Direction by task; may name further tasks.

    Raises:
        SimoError: When there is no task, the task sets differ or a baseline is not positive.
    """
    return _mean_gain(gain_eq2, scores, baseline, higher_is_better)


def _mean_gain(
    gain: Callable[[float, float, bool], float],
    scores: Mapping[str, float],
    baseline: Mapping[str, float],
    higher_is_better: Mapping[str, bool],
) -> float:
    if not scores:
        raise SimoError("delta needs the scores of at least one task, got none")
    if set(scores) != set(baseline):
        raise SimoError(
            f"delta needs the same tasks on both sides: scores have {sorted(scores)}, "
            f"the baseline has {sorted(baseline)}"
        )
    unknown = sorted(set(scores) - set(higher_is_better))
    if unknown:
        raise SimoError(f"higher_is_better names {sorted(higher_is_better)}, it lacks {unknown}")
    total = 0.0
    for task, score in scores.items():
        try:
            total += gain(score, baseline[task], higher_is_better[task])
        except SimoError as error:
            raise SimoError(f"delta of task {task!r}: {error}") from None
    return total / len(scores)


def _check_scores(score: float, baseline: float) -> None:
    if baseline <= 0:
        raise SimoError(f"the baseline is {baseline}, expected more than 0; nothing can be relative to it")
    if score < 0:
        raise SimoError(f"the score is {score}, expected 0 or more; a relative gain has no meaning below 0")
