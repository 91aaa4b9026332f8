"""Re-alignment: features -> features."""

from simo_merge.realign.auto import Auto
from simo_merge.realign.distances import TapDistance, tap_distances
from simo_merge.realign.features import CalibrationFeatures, Features, capture, capture_all
from simo_merge.realign.full_affine import FullAffine
from simo_merge.realign.inside.calibration import EncoderCalibration
from simo_merge.realign.inside.tuning import EncoderAdapters, EncoderNorms
from simo_merge.realign.linear import LinearSurgery
from simo_merge.realign.magnitude import Magnitude
from simo_merge.realign.methods import (
    REALIGNMENTS,
    BatchNormRecalibration,
    HeadRealignment,
    NormRecalibration,
    Surgery,
    realignment,
)
from simo_merge.realign.orthogonal import Procrustes
from simo_merge.realign.realign import realign
from simo_merge.realign.realignment import Calibration, Realignment
from simo_merge.realign.spatial import Spatial
from simo_merge.realign.token_linear import TokenLinear

__all__ = [
    "REALIGNMENTS",
    "Auto",
    "BatchNormRecalibration",
    "Calibration",
    "CalibrationFeatures",
    "EncoderAdapters",
    "EncoderCalibration",
    "EncoderNorms",
    "Features",
    "FullAffine",
    "HeadRealignment",
    "LinearSurgery",
    "Magnitude",
    "NormRecalibration",
    "Procrustes",
    "Realignment",
    "Spatial",
    "Surgery",
    "TapDistance",
    "TokenLinear",
    "capture",
    "capture_all",
    "realign",
    "realignment",
    "tap_distances",
]
