"""How joint training weighs its tasks: by their losses, or by their gradients for the shared encoder."""

from simo_merge.training.weighting.auto_lambda import AutoLambda
from simo_merge.training.weighting.base import LossWeighting, SharedStep, State, Weighting
from simo_merge.training.weighting.cagrad import CaGrad
from simo_merge.training.weighting.cones import Mgda, UpGrad
from simo_merge.training.weighting.dwa import Dwa
from simo_merge.training.weighting.famo import Famo
from simo_merge.training.weighting.formulas import Equal, Geometric, RandomWeights, ScaleInvariant
from simo_merge.training.weighting.gradnorm import GradNorm
from simo_merge.training.weighting.jacobian import GradientMethod, GramianMethod
from simo_merge.training.weighting.nash import NashMtl
from simo_merge.training.weighting.registry import WEIGHTINGS, WeightingFacts, describe_weighting, weighting_named
from simo_merge.training.weighting.uncertainty import Uncertainty
from simo_merge.training.weighting.with_torchjd import AlignedMtl, GradDrop, ImtlG, PcGrad

__all__ = [
    "WEIGHTINGS",
    "AlignedMtl",
    "AutoLambda",
    "CaGrad",
    "Dwa",
    "Equal",
    "Famo",
    "Geometric",
    "GradDrop",
    "GradNorm",
    "GradientMethod",
    "GramianMethod",
    "ImtlG",
    "LossWeighting",
    "Mgda",
    "NashMtl",
    "PcGrad",
    "RandomWeights",
    "ScaleInvariant",
    "SharedStep",
    "State",
    "Uncertainty",
    "UpGrad",
    "Weighting",
    "WeightingFacts",
    "describe_weighting",
    "weighting_named",
]
