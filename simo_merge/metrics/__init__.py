"""Metrics that pool over a whole split, and the relative performance Δ of a multi-task model.

Each metric is a small accumulator. Its state is a handful of float64 or int64 sums on the CPU that add up
over batches and over workers, so a result depends neither on the batch size nor on how a split was shared
out. Metrics see a boolean mask and nothing else of the labels' missing values: the reader turned every
sentinel into that mask.
"""

from __future__ import annotations

from simo_merge.metrics.base import Metric
from simo_merge.metrics.delta import delta_eq2, delta_ratio, gain_eq2, gain_ratio
from simo_merge.metrics.depth import DepthMetric
from simo_merge.metrics.normals import NormalsMetric, angles_between
from simo_merge.metrics.regression import RegressionMetric
from simo_merge.metrics.segmentation import Absent, SegmentationMetric

__all__ = [
    "Absent",
    "DepthMetric",
    "Metric",
    "NormalsMetric",
    "RegressionMetric",
    "SegmentationMetric",
    "angles_between",
    "delta_eq2",
    "delta_ratio",
    "gain_eq2",
    "gain_ratio",
]
