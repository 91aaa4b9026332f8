"""How far one prediction is from another of the same task: what takes the place of a loss where there is no label."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from simo_merge.tasks.base import Task
from simo_merge.tasks.maps import Normals
from simo_merge.tasks.segmentation import Segmentation


def prediction_distance(task: Task, prediction: Tensor, target: Tensor) -> Tensor:
    """How far a prediction is from another of the same task, both activated (B, K, H, W); a scalar, 0 for equal ones.

    Segmentation: KL(target || prediction) of the class probabilities in nats, whose gradient is that of the
    cross-entropy with soft labels. Normals: 1 - cosine. Every other task: mean absolute difference. Means over pixels.
    """
    if isinstance(task, Segmentation):
        ours, theirs = prediction.log_softmax(dim=1), target.log_softmax(dim=1)
        return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1).mean()
    if isinstance(task, Normals):
        return 1.0 - (prediction * target).sum(dim=1).mean()
    return (prediction - target).abs().mean()
