"""Relative performance Δ against single-task models, in percent; positive is better.

Two forms are in use and they differ as soon as a lower-is-better score grows a lot, so each has its own name.
`delta_ratio` is what the tables of the SIMO paper (arXiv 2504.11268) report; `delta_eq2` is what its equation
(2) and most multi-task papers print. Both take one score a task; `delta_per_metric` takes all of them.
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
    Nash-MTL, CAGrad and FAMO print the opposite sign, averaged over metrics instead of tasks: see
    `delta_per_metric`.

    Args:
        scores: Primary score of the multi-task model by task, M_m.
        baseline: Score of the single-task models by task, M_b; the same tasks.
        higher_is_better: Direction by task; may name further tasks.

    Raises:
        SimoError: When there is no task, the task sets differ or a baseline is not positive.
    """
    return _mean_gain(gain_eq2, scores, baseline, higher_is_better)


def delta_per_metric(
    scores: Mapping[str, float],
    baseline: Mapping[str, float],
    higher_is_better: Mapping[str, bool],
    weights: Mapping[str, float] | None = None,
) -> float:
    """Δ = 100 · Σ_k w_k (−1)^{l_k} (M_k − B_k)/B_k / Σ_k w_k percent over metrics k, l_k = 1 where lower is better.

    Positive is better, as everywhere here. With equal weights it is the negative of Δm in Nash-MTL (Navon et
    al., ICML 2022, section 6), CAGrad and FAMO, where lower is better: on NYUv2 nine metrics, five of them of
    normals; on Cityscapes four. With w_k = 1/(metrics of the task) it is LibMTL's Δp, the mean over tasks of
    the mean over their metrics. With one metric a task it is `delta_eq2`.

    Args:
        scores: Every metric of the multi-task model by a name of its own, as "depth abs".
        baseline: The same metrics of the single-task models.
        higher_is_better: Direction by metric; may name further metrics.
        weights: w_k by metric, 0 or more; None weighs all alike. May name further metrics.

    Raises:
        SimoError: When there is no metric, the two sides differ, a direction or weight is missing, a baseline is
            not positive, or the weights do not sum to more than 0.
    """
    return _mean_gain(gain_eq2, scores, baseline, higher_is_better, weights)


def _mean_gain(
    gain: Callable[[float, float, bool], float],
    scores: Mapping[str, float],
    baseline: Mapping[str, float],
    higher_is_better: Mapping[str, bool],
    weights: Mapping[str, float] | None = None,
) -> float:
    if not scores:
        raise SimoError("delta needs at least one score, got none")
    if set(scores) != set(baseline):
        raise SimoError(
            f"delta needs the same scores on both sides: the model has {sorted(scores)}, "
            f"the baseline has {sorted(baseline)}"
        )
    weights = dict.fromkeys(scores, 1.0) if weights is None else weights
    for what, given in (("higher_is_better", higher_is_better), ("weights", weights)):
        unknown = sorted(set(scores) - set(given))
        if unknown:
            raise SimoError(f"{what} names {sorted(given)}, it lacks {unknown}")
    weight = sum(weights[key] for key in scores)
    if not weight > 0 or min(weights[key] for key in scores) < 0:
        raise SimoError(f"weights are {dict(weights)}, expected none below 0 and a sum above 0")
    total = 0.0
    for key, score in scores.items():
        try:
            total += weights[key] * gain(score, baseline[key], higher_is_better[key])
        except SimoError as error:
            raise SimoError(f"delta of {key!r}: {error}") from None
    return total / weight


def _check_scores(score: float, baseline: float) -> None:
    if baseline <= 0:
        raise SimoError(f"the baseline is {baseline}, expected more than 0; nothing can be relative to it")
    if score < 0:
        raise SimoError(f"the score is {score}, expected 0 or more; a relative gain has no meaning below 0")
