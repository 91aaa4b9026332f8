"""Metrics of a whole split, the protocols that choose among them, and the relative performance Δ of a model.

Each metric is a small accumulator. Its state is a handful of float64 or int64 sums on the CPU that add up
over batches and over workers. Under the default protocol, `pooled`, a result depends neither on the batch
size nor on how a split was shared out; published protocols differ, and `PROTOCOLS` names them. Metrics see a
boolean mask and nothing else of the labels' missing values: the reader turned every sentinel into that mask.
"""

from __future__ import annotations

from simo_merge.metrics.base import Metric
from simo_merge.metrics.batchwise import BatchMean
from simo_merge.metrics.delta import delta_eq2, delta_per_metric, delta_ratio, gain_eq2, gain_ratio
from simo_merge.metrics.depth import DepthMetric
from simo_merge.metrics.normals import NormalsMetric, angles_between, angles_by_acos
from simo_merge.metrics.protocols import PROTOCOLS, EvaluationProtocol, Measure, find_protocol, protocol_of_label
from simo_merge.metrics.regression import RegressionMetric
from simo_merge.metrics.segmentation import Absent, SegmentationMetric

__all__ = [
    "PROTOCOLS",
    "Absent",
    "BatchMean",
    "DepthMetric",
    "EvaluationProtocol",
    "Measure",
    "Metric",
    "NormalsMetric",
    "RegressionMetric",
    "SegmentationMetric",
    "angles_between",
    "angles_by_acos",
    "delta_eq2",
    "delta_per_metric",
    "delta_ratio",
    "find_protocol",
    "gain_eq2",
    "gain_ratio",
    "protocol_of_label",
]
