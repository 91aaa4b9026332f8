"""Re-alignment: features -> features."""

from simo_merge.realign.distances import TapDistance, tap_distances
from simo_merge.realign.features import CalibrationFeatures, Features, capture, capture_all
from simo_merge.realign.methods import (
    REALIGNMENTS,
    BatchNormRecalibration,
    Calibration,
    HeadRealignment,
    LinearSurgery,
    NormRecalibration,
    Realignment,
    Surgery,
    realignment,
)
from simo_merge.realign.realign import realign

__all__ = [
    "REALIGNMENTS",
    "BatchNormRecalibration",
    "Calibration",
    "CalibrationFeatures",
    "Features",
    "HeadRealignment",
    "LinearSurgery",
    "NormRecalibration",
    "Realignment",
    "Surgery",
    "TapDistance",
    "capture",
    "capture_all",
    "realign",
    "realignment",
    "tap_distances",
]
