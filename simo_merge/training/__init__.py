"""Training: labels -> weights."""

from simo_merge.training.config import AUGMENTATIONS, TrainConfig
from simo_merge.training.experts import train_expert
from simo_merge.training.joint import train_joint
from simo_merge.training.joint_config import JointConfig
from simo_merge.training.weighting import WEIGHTINGS, Weighting, describe_weighting, weighting_named

__all__ = [
    "AUGMENTATIONS",
    "WEIGHTINGS",
    "JointConfig",
    "TrainConfig",
    "Weighting",
    "describe_weighting",
    "train_expert",
    "train_joint",
    "weighting_named",
]
