"""Re-alignment: features -> features."""

from simo_merge.realign.auto import Auto
from simo_merge.realign.distances import TapDistance, tap_distances
from simo_merge.realign.error_maps import error_maps
from simo_merge.realign.features import CalibrationFeatures, Features, capture, capture_all
from simo_merge.realign.full_affine import FullAffine
from simo_merge.realign.gradient_surgery import GradientSurgery
from simo_merge.realign.head_methods import HeadDistillation, HeadRealignment
from simo_merge.realign.inside.calibration import EncoderCalibration
from simo_merge.realign.inside.distillation import EncoderDistillation
from simo_merge.realign.inside.tuning import EncoderAdapters, EncoderNorms
from simo_merge.realign.linear import LinearSurgery
from simo_merge.realign.magnitude import Magnitude
from simo_merge.realign.methods import (
    REALIGNMENTS,
    BatchNormRecalibration,
    NormRecalibration,
    Surgery,
    realignment,
)
from simo_merge.realign.objectives import ALIGNER_OBJECTIVES
from simo_merge.realign.on_disk import OnDisk
from simo_merge.realign.online import OnlineSurgery
from simo_merge.realign.orthogonal import Procrustes
from simo_merge.realign.planes import FeaturePlane, feature_planes
from simo_merge.realign.realign import realign
from simo_merge.realign.realignment import Calibration, Realignment
from simo_merge.realign.spatial import Spatial
from simo_merge.realign.specific.surgery_v2 import GradientSurgeryV2, SurgeryV2
from simo_merge.realign.specific.task_norms import TaskNorms
from simo_merge.realign.token_linear import TokenLinear

__all__ = [
    "ALIGNER_OBJECTIVES",
    "REALIGNMENTS",
    "Auto",
    "BatchNormRecalibration",
    "Calibration",
    "CalibrationFeatures",
    "EncoderAdapters",
    "EncoderCalibration",
    "EncoderDistillation",
    "EncoderNorms",
    "FeaturePlane",
    "Features",
    "FullAffine",
    "GradientSurgery",
    "GradientSurgeryV2",
    "HeadDistillation",
    "HeadRealignment",
    "LinearSurgery",
    "Magnitude",
    "NormRecalibration",
    "OnDisk",
    "OnlineSurgery",
    "Procrustes",
    "Realignment",
    "Spatial",
    "Surgery",
    "SurgeryV2",
    "TapDistance",
    "TaskNorms",
    "TokenLinear",
    "capture",
    "capture_all",
    "error_maps",
    "feature_planes",
    "realign",
    "realignment",
    "tap_distances",
]
