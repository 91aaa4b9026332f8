"""Fisher merging: every weight is averaged with how much each task's predictions depend on it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from simo_merge.data import Batch
from simo_merge.device import autocast
from simo_merge.errors import SimoError
from simo_merge.merging.from_images.layer_inputs import LayerFit
from simo_merge.merging.method import MergeData
from simo_merge.merging.options import above_zero, one_of, whole
from simo_merge.models import SingleTaskModel
from simo_merge.progress import progress
from simo_merge.scoring import batches
from simo_merge.tasks import Segmentation, Task

FisherSource = Literal["predictions", "labels"]


@dataclass(frozen=True)
class Fisher(LayerFit):
    """Fisher merging: the mean of the experts, weight by weight, weighted by their diagonal Fisher information.

        theta = sum_t F_t theta_t / sum_t F_t,     F_t = (1/N) sum_i (d log p_t(y | x_i) / d theta_t)^2,

    element by element, with one gradient for each image x_i. log p_t is summed over the pixels of the image: the
    softmax of a segmentation, a Gaussian of unit variance around the prediction of any other task.

    source: where y comes from. "predictions" draws it from p_t(. | x_i) itself, as the Fisher information asks; no
        label is read. "labels" takes the labels and the task's own loss (the empirical Fisher).
    images: at most this many are read, the first of the data set.
    normalise: divide F_t by its root mean square over the encoder first. Without, the task whose loss has the
        largest gradients decides nearly alone.
    floor: no element of F_t counts for less: weights that no prediction depends on are averaged.

    Raises:
        SimoError: an option out of range; when it sees images, labels that are missing, or a gradient that is NaN.

    Source: Matena and Raffel, arXiv 2111.09832; normalising and the floor of 1e-6 as in the
    authors' code (which divides by the norm, a constant apart).
    """

    name: ClassVar[str] = "fisher"
    source: FisherSource = "predictions"
    images: int = 256
    normalise: bool = True
    floor: float = 1e-6

    def __post_init__(self) -> None:
        one_of(self.name, "source", self.source, get_args(FisherSource))
        object.__setattr__(self, "images", whole(self.name, "images", self.images, least=1))
        object.__setattr__(self, "floor", above_zero(self.name, "floor", self.floor))

    @property
    def needs_labels(self) -> bool:
        """With source="labels"."""
        return self.source == "labels"

    def observe(self, given: MergeData) -> dict[str, Tensor]:
        """The merged parameters, by name."""
        weighted: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        for expert in given.experts:
            information = self._rescaled(self.information(expert, given))
            state = expert.encoder.vit.state_dict()
            for name, fisher in information.items():
                share = fisher * state[name].to(fisher)
                weighted[name] = weighted[name] + share if name in weighted else share
                weights[name] = weights[name] + fisher if name in weights else fisher
        return {name: (value / weights[name]).float().cpu() for name, value in weighted.items()}

    def information(self, expert: SingleTaskModel, given: MergeData) -> dict[str, Tensor]:
        """The diagonal of one expert's Fisher information, by parameter of its encoder, float64 on the device.

        Raises:
            SimoError: a gradient is NaN or infinite.
        """
        model = copy.deepcopy(expert).to(given.device, torch.float32).eval().requires_grad_(False)
        parameters = dict(model.encoder.vit.requires_grad_(True).named_parameters())
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in parameters.items()}
        generator = torch.Generator().manual_seed(given.seed)
        count = min(self.images, len(given.images))
        with torch.enable_grad():
            for batch in progress(first_images(given, count), count, f"Fisher information: {expert.task.name}"):
                with autocast(given.device, given.precision):
                    prediction = model(batch.images)
                    loss = self._loss(expert.task, prediction.float(), batch, generator)
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:  # parameters after the last tap have none
                        total[name] += gradient.double().square() / count
        _check(total, expert.task)
        return total

    def _loss(self, task: Task, prediction: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """-log p(y | x) of the one image of a batch, up to a constant."""
        if self.source == "labels":
            mask = batch.masks[task.name]
            return task.loss(prediction, batch.targets[task.name], mask) * mask.sum()  # of the mean the sum
        return surprise(task, prediction, generator)

    def _rescaled(self, information: dict[str, Tensor]) -> dict[str, Tensor]:
        scale = _root_mean_square(information) if self.normalise else 1.0
        # One floor for all tasks: where no prediction depends on a weight, every expert counts alike.
        return {name: (fisher / (scale or 1.0)).clamp_min(self.floor) for name, fisher in information.items()}


def surprise(task: Task, prediction: Tensor, generator: torch.Generator) -> Tensor:
    """-log p(y) for a y drawn from the prediction p itself (B, K, H, W), summed over pixels, up to a constant.

    Only the gradient is meant to be used. Draws are made on the CPU, so they are the same on every device.
    """
    if isinstance(task, Segmentation):
        log = prediction.log_softmax(dim=1)
        drawn = torch.rand(log[:, :1].shape, generator=generator).to(log)
        below = log.detach().exp().cumsum(dim=1) < drawn  # inverse of the cumulative distribution
        labels = below.sum(dim=1, keepdim=True).clamp_max(log.shape[1] - 1)  # (B, 1, H, W)
        return -log.gather(1, labels).sum()
    # y = prediction + e, e normal: the gradient of |y - prediction|^2 / 2 is -e' d prediction.
    return -(torch.randn(prediction.shape, generator=generator).to(prediction) * prediction).sum()


def _root_mean_square(information: dict[str, Tensor]) -> float:
    squares = sum(float(fisher.square().sum()) for fisher in information.values())
    return math.sqrt(squares / sum(fisher.numel() for fisher in information.values()))


def first_images(given: MergeData, count: int) -> Iterator[Batch]:
    """The first images, one at a time, on the device."""
    for _, batch in zip(range(count), batches(given.images, 1), strict=False):
        yield batch.to(given.device)


def _check(information: dict[str, Tensor], task: Task) -> None:
    for name, fisher in information.items():
        if not torch.isfinite(fisher).all():
            raise SimoError(
                f"the gradient of {task.name} with respect to {name} is NaN or infinite; the weights are broken, or "
                "the precision is too low: use float32"
            )
