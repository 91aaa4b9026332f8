"""Training: labels -> weights."""

from simo_merge.training.config import TrainConfig
from simo_merge.training.experts import train_expert

__all__ = ["TrainConfig", "train_expert"]
