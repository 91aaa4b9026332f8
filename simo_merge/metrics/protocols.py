"""Evaluation protocols: how each kind of task is measured, by name.

Papers that report the same metric of the same split compute it in different ways, so a number may be set
beside a published one only when both were computed alike. A protocol says, for each kind of task, which
accumulator counts and which of its scores is the primary one. docs/protocols.md has the formulas.

Facts of the published code, with where they were read:

* MTAN (github.com/lorenmt/mtan, im2im_pred/utils.py); Nash-MTL, CAGrad and FAMO evaluate with copies of it.
* LibMTL (github.com/median-research-group/LibMTL, examples/nyu/utils.py; its Cityscapes example imports it).
* ASTMT (Maninis et al., CVPR 2019) as github.com/SimonVandenhende/Multi-Task-Learning-PyTorch evaluates it in
  evaluation/, the ancestor of InvPT's evaluation.
* SIMO (github.com/d23845jg/simo_merging, training/utils.py, class TaskMetric).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from simo_merge.errors import SimoError
from simo_merge.metrics.base import Metric
from simo_merge.metrics.batchwise import BatchMean
from simo_merge.metrics.depth import DepthMetric
from simo_merge.metrics.normals import NormalsMetric, angles_by_acos
from simo_merge.metrics.regression import RegressionMetric
from simo_merge.metrics.segmentation import Absent, SegmentationMetric

Build = Callable[[str, int], Metric]
"""From a task's name and its number of channels (or classes) to a fresh accumulator."""

_ANGLES = ("mean", "median", "within_11.25", "within_22.5", "within_30")


@dataclass(frozen=True)
class Measure:
    """How one kind of task is measured.

    Args:
        build: Makes the accumulator.
        primary: The score that counts in Δ and in selection; the first that the accumulator returns.
    """

    build: Build
    primary: str


@dataclass(frozen=True)
class EvaluationProtocol:
    """How every kind of task is measured.

    Args:
        name: What it is called.
        measures: By the kind of the task.
        by_batch: Whether some score depends on the batch size.
    """

    name: str
    measures: Mapping[str, Measure]
    by_batch: bool = False

    def measure(self, kind: str) -> Measure:
        """How tasks of this kind are measured.

        Raises:
            SimoError: When the protocol does not say; it lists the kinds for which it does.
        """
        if kind not in self.measures:
            raise SimoError(
                f"protocol {self.name} does not say how a task of kind {kind!r} is measured, "
                f"only {', '.join(self.measures)}"
            )
        return self.measures[kind]

    def label(self, batch_size: int) -> str:
        """What results record: the name, with the batch size where that is part of the result (`mtan@8`)."""
        return f"{self.name}@{batch_size}" if self.by_batch else self.name


def find_protocol(name: str) -> EvaluationProtocol:
    """The protocol of this name.

    Raises:
        SimoError: When there is none; it lists those that there are.
    """
    if name not in PROTOCOLS:
        raise SimoError(f"unknown protocol {name!r}; expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def protocol_of_label(label: str) -> EvaluationProtocol:
    """The protocol behind what `EvaluationProtocol.label` gave.

    Raises:
        SimoError: As `find_protocol`.
    """
    return find_protocol(label.partition("@")[0])


def _segmentation(absent: Absent) -> Measure:
    return Measure(lambda name, classes: SegmentationMetric(classes, absent, name=name), "miou")


def _depth(*scores: str) -> Measure:
    """Depth and disparity as published code takes them: a label of 0 is no label."""
    return Measure(lambda name, _: DepthMetric(scores, zero_sums=False, name=name), scores[0])


def _normals(*scores: str, zero_sums: bool = False) -> Measure:
    def build(name: str, _: int) -> Metric:
        return NormalsMetric(scores, angles=angles_by_acos, zero_sums=zero_sums, name=name)

    return Measure(build, scores[0])


def _regression(*scores: str) -> Measure:
    return Measure(lambda name, _: RegressionMetric(scores, name=name), scores[0])


def _batch_mean(measure: Measure, weight: Literal["batch", "images"]) -> Measure:
    return Measure(lambda name, channels: BatchMean(measure.build(name, channels), weight), measure.primary)


def _kinds(segmentation: Measure, depth: Measure, normals: Measure, regression: Measure) -> dict[str, Measure]:
    """The measures by kind; disparity is measured as depth is, and in the code of MTAN it is called depth."""
    return {
        "segmentation": segmentation,
        "depth": depth,
        "disparity": depth,
        "normals": normals,
        "regression": regression,
    }


_LIBMTL_DEPTH, _LIBMTL_NORMALS = _depth("abs", "rel"), _normals(*_ANGLES)

PROTOCOLS: dict[str, EvaluationProtocol] = {
    protocol.name: protocol
    for protocol in (
        EvaluationProtocol(
            "pooled",
            _kinds(
                _segmentation("skip"),
                Measure(lambda name, _: DepthMetric(name=name), "abs"),
                Measure(lambda name, _: NormalsMetric(name=name), "mean"),
                _regression("abs", "rmse"),
            ),
        ),
        EvaluationProtocol(
            "mtan",
            _kinds(
                _segmentation("nan"),
                _batch_mean(_LIBMTL_DEPTH, "batch"),
                _batch_mean(_LIBMTL_NORMALS, "batch"),
                _batch_mean(_regression("abs"), "batch"),  # it has no such task; as its depth
            ),
            by_batch=True,
        ),
        EvaluationProtocol(
            "libmtl",
            _kinds(
                _segmentation("nan"),
                _LIBMTL_DEPTH,
                _LIBMTL_NORMALS,
                _regression("abs"),  # it has no such task; as its depth
            ),
        ),
        EvaluationProtocol(
            "astmt",
            _kinds(
                _segmentation("zero"),
                _depth("rmse", "log_rmse"),
                _normals(*_ANGLES, "rmse", zero_sums=True),
                _regression("rmse"),  # ASTMT measures albedo so
            ),
        ),
        EvaluationProtocol(
            "simo",
            _kinds(
                _segmentation("skip"),
                _batch_mean(_depth("abs"), "images"),
                _batch_mean(_normals("mean"), "images"),
                _batch_mean(_regression("abs"), "images"),
            ),
            by_batch=True,
        ),
    )
}
"""Every protocol by its name; `pooled` is the default everywhere."""
