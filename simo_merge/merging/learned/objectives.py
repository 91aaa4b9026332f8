"""What learned coefficients minimise: distances to the experts, entropy, or the losses on labels."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.data import Batch
from simo_merge.errors import SimoError
from simo_merge.merging.learned.expert_taps import ExpertTaps
from simo_merge.merging.method import MergeData
from simo_merge.models import SingleTaskModel, Taps
from simo_merge.tasks import Normals, Segmentation
from simo_merge.tasks.agreement import prediction_distance

_FLOOR = 1e-3  # of a deviation, relative to what is usual
_VARIANCE_FLOOR = 1e-2  # of a variance, relative to the median: channels that hardly vary must not dominate
_TINY = 1e-12


class Objective(ABC):
    """A loss for every task, as a function of what the merged encoder gives for a batch.

    Args:
        given: Experts and images.
        used: Indices of the images that batches will be made of.
    """

    name: ClassVar[str]
    needs_labels: ClassVar[bool] = False

    @classmethod
    def check(cls, given: MergeData) -> None:
        """Refuse experts or images that the objective cannot work with, before anything is computed.

        Raises:
            SimoError: it says what is missing.
        """
        return

    @abstractmethod
    def __init__(self, given: MergeData, used: Sequence[int]) -> None: ...

    @abstractmethod
    def losses(self, taps: Taps, indices: Sequence[int], batch: Batch) -> Tensor:
        """The losses of the tasks, (T,), in the order of the experts.

        Args:
            taps: Of the merged encoder, with a graph.
            indices: Which images the batch is made of.
            batch: The images, and their labels where there are any, on the device.
        """


class FeatureAgreement(Objective):
    """Unexplained variance of the experts' features at the taps.

    L_t = mean over taps, kinds of token, their tokens and channels c of (x_c - y_c)^2 / var(y_c), where x is the merged
    encoder's feature and y the expert's: 0 where they agree, 1 where it gives the expert's mean. Kinds of token are the
    patches and each prefix token: a prefix token weighs as much as all patches of its image, for decoders repeat it
    over the whole map. Every channel counts alike, though a few channels of a ViT are a hundred times as large as the
    others: var is that of the expert's patch features over all images, at least a hundredth of the median. That is how
    closed-form surgery weighs errors, too.
    """

    name: ClassVar[str] = "features"

    def __init__(self, given: MergeData, used: Sequence[int]) -> None:
        self.targets = [ExpertTaps(expert, given, used) for expert in given.experts]
        self.scales = [tuple(_floored(v) for v in target.channel_variances()) for target in self.targets]

    def losses(self, taps: Taps, indices: Sequence[int], batch: Batch) -> Tensor:
        """(T,), each from 0 upwards."""
        return torch.stack(
            [
                _unexplained(taps, target.at(indices), scales)
                for target, scales in zip(self.targets, self.scales, strict=True)
            ]
        )


def _floored(variance: Tensor) -> Tensor:
    return variance.clamp_min(max(_VARIANCE_FLOOR * float(variance.median()), _TINY))


def _unexplained(merged: Taps, expert: Taps, variances: Sequence[Tensor]) -> Tensor:
    found = []
    for tap, variance in enumerate(variances):
        x, z, y, w = merged.maps[tap], merged.prefix[tap], expert.maps[tap], expert.prefix[tap]
        variance = variance.to(y)
        patches = ((x - y).square() / variance.view(-1, 1, 1)).mean()  # (B, C, h, w)
        prefix = ((z - w).square() / variance).mean(dim=(0, 2))  # (B, P, C) -> (P,)
        found.append(torch.cat([patches[None], prefix]).mean())
    return torch.stack(found).mean()


class _DecodedObjective(Objective):
    """An objective on predictions: the merged encoder's taps through each expert's own decoder."""

    def __init__(self, given: MergeData, used: Sequence[int]) -> None:
        self.heads = [_head(expert, given.device) for expert in given.experts]

    def predictions(self, taps: Taps, batch: Batch) -> list[Tensor]:
        """Every task's activated prediction, (B, K, H, W)."""
        size = (batch.images.shape[-2], batch.images.shape[-1])
        return [head.decode(taps, size) for head in self.heads]


def _head(expert: SingleTaskModel, device: torch.device) -> SingleTaskModel:
    """The expert's decoder, frozen, on the device; the encoder beside it only knows the geometry."""
    decoder = copy.deepcopy(expert.decoder).to(device).eval().requires_grad_(False)
    return SingleTaskModel(expert.encoder, decoder, expert.task)


class PredictionAgreement(_DecodedObjective):
    """Distance between the merged encoder's predictions and the experts' own, each through the expert's decoder.

    Segmentation: KL(expert || merged) of the class probabilities in nats, whose gradient is that of the soft
    cross-entropy. Normals: 1 - cosine. Every other task: mean absolute difference, in standard deviations of the
    expert's predictions, so that the unit of a task does not weigh it. All are means over pixels.
    """

    name: ClassVar[str] = "predictions"

    def __init__(self, given: MergeData, used: Sequence[int]) -> None:
        super().__init__(given, used)
        # Taps are kept, not predictions: decoding them again is cheap, and predictions of many classes at full
        # size would take ten times the memory.
        self.targets = [ExpertTaps(expert, given, used) for expert in given.experts]
        self.units = [self._unit(head, target) for head, target in zip(self.heads, self.targets, strict=True)]

    def losses(self, taps: Taps, indices: Sequence[int], batch: Batch) -> Tensor:
        """(T,), each from 0 upwards."""
        size = (batch.images.shape[-2], batch.images.shape[-1])
        found = []
        for head, target, unit, prediction in zip(
            self.heads, self.targets, self.units, self.predictions(taps, batch), strict=True
        ):
            with torch.no_grad():
                wanted = head.decode(target.at(indices), size)
            found.append(prediction_distance(head.task, prediction, wanted) / unit)
        return torch.stack(found)

    @staticmethod
    def _unit(head: SingleTaskModel, target: ExpertTaps) -> float:
        """The standard deviation of the expert's predictions, where the task has a unit; else 1."""
        if isinstance(head.task, Segmentation | Normals):
            return 1.0
        means, squares = [], []
        with torch.no_grad():
            for index in target.indices:
                values = head.decode(target.at([index]), target.image_size).double()
                means.append(float(values.mean()))
                squares.append(float(values.square().mean()))
        mean = sum(means) / len(means)
        deviation = math.sqrt(max(sum(squares) / len(squares) - mean**2, 0.0))
        return max(deviation, _FLOOR * abs(mean), _TINY)


class PredictionEntropy(_DecodedObjective):
    """Entropy of the class probabilities, mean over pixels, in nats: the paper's objective.

    It needs a distribution over classes, so it is for segmentation alone.

    Source: arXiv 2310.02575, equation 6.
    """

    name: ClassVar[str] = "entropy"

    @classmethod
    def check(cls, given: MergeData) -> None:
        """Every task must be a segmentation."""
        others = [e.task.name for e in given.experts if not isinstance(e.task, Segmentation)]
        if others:
            raise SimoError(
                f"the objective 'entropy' needs class probabilities, which {', '.join(others)} "
                f"{'does' if len(others) == 1 else 'do'} not predict; take 'features' or 'predictions'"
            )

    def losses(self, taps: Taps, indices: Sequence[int], batch: Batch) -> Tensor:
        """(T,), each from 0 to ln K."""
        found = []
        for logits in self.predictions(taps, batch):
            logs = logits.log_softmax(dim=1)
            found.append(-(logs.exp() * logs).sum(dim=1).mean())
        return torch.stack(found)


class LabelLoss(_DecodedObjective):
    """The tasks' own losses on labels.

    Source: arXiv 2504.11268, figure 2 (coefficients a layer) and appendix C (the unweighted losses).
    """

    name: ClassVar[str] = "supervised"
    needs_labels: ClassVar[bool] = True

    def losses(self, taps: Taps, indices: Sequence[int], batch: Batch) -> Tensor:
        """(T,), in the units of the tasks' losses."""
        found = []
        for head, prediction in zip(self.heads, self.predictions(taps, batch), strict=True):
            name = head.task.name
            found.append(head.task.loss(prediction, batch.targets[name], batch.masks[name]))
        return torch.stack(found)


OBJECTIVES: dict[str, type[Objective]] = {
    o.name: o for o in (FeatureAgreement, PredictionAgreement, PredictionEntropy, LabelLoss)
}
