"""Training: labels -> weights."""

from simo_merge.training.config import AUGMENTATIONS, TrainConfig
from simo_merge.training.experts import train_expert

__all__ = ["AUGMENTATIONS", "TrainConfig", "train_expert"]
