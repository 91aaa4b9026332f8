"""How a multi-task model is trained jointly, and the recipe that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from simo_merge.data import DenseDataset
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel
from simo_merge.training.config import TrainConfig, data_fingerprint, training_options
from simo_merge.training.weighting import Equal, Weighting

# Raise this when joint training changes in a way that gives other weights: cached models are then trained anew.
JOINT_VERSION = 1


@dataclass(frozen=True)
class JointConfig(TrainConfig):
    """Options of joint training: those of `TrainConfig`, which mean the same here, and three more.

    weighting: how the tasks are weighed in the second stage; in the first they share nothing that is trained.
    distill: weight of the distance to the experts' features (`Distillation`); 0 does without.
    adapter_lr: peak learning rate of distillation's matrices.
    """

    weighting: Weighting = Equal()  # noqa: RUF009  # frozen
    distill: float = 0.0
    adapter_lr: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.weighting, Weighting):
            raise SimoError(f"weighting must be a Weighting, got {self.weighting!r}; weighting_named makes one by name")
        if not 0 <= self.distill < math.inf:
            raise SimoError(f"distill must be 0 or more, got {self.distill}")
        if not 0 < self.adapter_lr < math.inf:
            raise SimoError(f"adapter_lr must be positive, got {self.adapter_lr}")


def joint_recipe(
    dataset: DenseDataset, model: MultiTaskModel, config: JointConfig, experts: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that decides the weights of a jointly trained model, as plain JSON values.

    Args:
        dataset: the training images.
        model: tasks in their order, base and taps.
        config: the options.
        experts: fingerprints of the experts that are distilled from, by task.
    """
    assert model.base is not None
    recipe: dict[str, Any] = {
        "joint_version": JOINT_VERSION,
        "tasks": [task.model_dump(mode="json") for task in model.tasks.values()],
        "encoder": {"name": model.base.name, "base_sha256": model.base.sha256, "taps": list(model.encoder.taps)},
        "data": {
            "name": dataset.name,
            "split": dataset.split,
            "images": len(dataset),
            "sha256": {task: data_fingerprint(dataset, task) for task in model.tasks},
        },
        "training": training_options(config),
        "weighting": {"name": config.weighting.name, **asdict(config.weighting)},  # type: ignore[call-overload]
    }
    if experts:
        recipe["distillation"] = {
            "weight": config.distill,
            "adapter_lr": config.adapter_lr,
            "experts": dict(experts),
        }
    return recipe
