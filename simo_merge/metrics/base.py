"""What every metric shares: the state that adds up, and the checks at its door."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from simo_merge.errors import SimoError


class Metric(ABC):
    """A score that is accumulated over batches and workers.

    `sums` is the state: named float64 or int64 tensors on the CPU. `merge` adds another worker's state to
    this one; instances can be pickled, so `torch.distributed.all_gather_object` carries them between
    processes.

    Args:
        name: The task's name, for error messages.
        settings: What else decides how it counts; metrics that differ in it do not merge.
    """

    def __init__(self, name: str, *settings: object) -> None:
        self.name = name
        self.settings = settings
        self.sums: dict[str, Tensor] = {"pixels": torch.zeros((), dtype=torch.int64)}

    @property
    def valid_pixels(self) -> int:
        """How many pixels have been counted."""
        return int(self.sums["pixels"])

    @abstractmethod
    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Counts one batch.

        Args:
            prediction: Activated prediction, (B, C, H, W).
            target: The labels as the task defines them; arbitrary where the mask is unset.
            mask: True where the label is valid, bool (B, H, W).

        Raises:
            SimoError: When shapes do not fit each other, or the prediction is not finite at a valid pixel.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The scores over all that was counted; NaN where nothing was."""

    def merge(self, other: Metric) -> None:
        """Adds the state of another metric of the same kind, say of another worker.

        Raises:
            SimoError: When the two metrics do not count the same things.
        """
        mine, theirs = ({key: tuple(value.shape) for key, value in m.sums.items()} for m in (self, other))
        if type(self) is not type(other) or self.settings != other.settings or mine != theirs:
            raise SimoError(
                f"{self.name}: cannot merge a {type(other).__name__} {other.settings} with state {theirs} into a "
                f"{type(self).__name__} {self.settings} with state {mine}; build both from the same task and protocol"
            )
        for key, value in other.sums.items():
            self.sums[key] = self.sums[key] + value

    def _add(self, **amounts: Tensor) -> None:
        for key, amount in amounts.items():
            self.sums[key] = self.sums[key] + amount.cpu()


def chosen_scores(name: str, wanted: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The wanted scores in their order.

    Raises:
        SimoError: When there is none, or one that the metric does not know.
    """
    unknown = [score for score in wanted if score not in known]
    if unknown or not wanted:
        raise SimoError(f"{name}: scores are {list(wanted)}, expected some of {', '.join(known)}")
    return tuple(wanted)


def counted(target: Tensor, mask: Tensor, zero_sums: bool) -> Tensor:
    """The pixels to count, bool (B, H, W): those of the mask, or fewer.

    Args:
        target: Labels, (B, C, H, W).
        mask: True where the label is valid, bool (B, H, W).
        zero_sums: Whether a valid label whose channels sum to 0 counts. Published code that takes
            `sum(label) != 0` for its mask drops a disparity of 0, and a normal like (0.6, -0.6, 0).
    """
    return mask if zero_sums else mask & (target.sum(dim=1) != 0)


def check_batch(
    name: str,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    channels: int | None,
    target_channels: bool = True,
) -> None:
    """Refuses a batch whose shapes would broadcast into a wrong number.

    Args:
        name: The task's name, for the message.
        prediction: Must be (B, C, H, W).
        target: Must have the prediction's batch and size.
        mask: Must be bool (B, H, W).
        channels: What C must be; None means "as the target".
        target_channels: Whether the target is (B, C, H, W) like the prediction, or (B, H, W) class indices.

    Raises:
        SimoError: With every shape that was seen and the one that was expected.
    """
    if prediction.ndim != 4 or (channels is not None and prediction.shape[1] != channels):
        expected = "C" if channels is None else channels
        raise SimoError(
            f"{name}: prediction has shape {tuple(prediction.shape)}, expected (B, {expected}, H, W); "
            "does the model's decoder belong to this task?"
        )
    pixels = (prediction.shape[0], *prediction.shape[2:])
    wanted = tuple(prediction.shape) if target_channels else pixels
    if tuple(target.shape) != wanted:
        raise SimoError(
            f"{name}: prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}, "
            f"expected a target of shape {wanted}; resize one to the other"
        )
    if tuple(mask.shape) != pixels or mask.dtype != torch.bool:
        raise SimoError(
            f"{name}: mask is {mask.dtype} of shape {tuple(mask.shape)}, expected torch.bool of shape {pixels}"
        )


def check_finite(name: str, values: Tensor) -> None:
    """Refuses predictions that would turn a pooled score into NaN.

    Raises:
        SimoError: When any value is NaN or infinite.
    """
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise SimoError(
            f"{name}: {bad} of {values.numel()} predicted values at valid pixels are NaN or infinite; "
            "the model has diverged or a merge coefficient is far too large"
        )


def valid_values(name: str, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Valid pixels of prediction and target on the CPU in float64: 2 x (B, C, H, W) -> 2 x (N, C).

    Raises:
        SimoError: When a prediction at a valid pixel is not finite.
    """
    predicted = prediction.detach().movedim(1, -1)[mask].to("cpu", torch.float64)
    wanted = target.detach().movedim(1, -1)[mask].to("cpu", torch.float64)
    check_finite(name, predicted)
    return predicted, wanted
