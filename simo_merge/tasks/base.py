"""The interface of every task, and the parts of drawing that kinds share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from torch import Tensor

from simo_merge.colours import MASKED, Picture
from simo_merge.errors import SimoError
from simo_merge.metrics import Metric, find_protocol

Limits = tuple[float, float]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Valid = npt.NDArray[np.bool_]


class Task(BaseModel, ABC):
    """One thing to predict from an image.

    Args:
        name: The task's key in predictions, targets and file names: letters, digits, _ and -.
        unit: Unit of the primary metric, "" for fractions.

    Raises:
        SimoError: When a field is unknown, missing or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    higher_is_better: ClassVar[bool] = False
    """Direction of the primary metric, under every protocol."""

    name: Name
    kind: str
    unit: str

    @model_validator(mode="wrap")
    @classmethod
    def _one_line_error(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "values"
            raise SimoError(f"{cls.__name__} task, field {field}: {first['msg']}, got {first['input']!r}") from None

    @property
    @abstractmethod
    def out_channels(self) -> int:
        """Channels that the decoder must put out."""

    @abstractmethod
    def activate(self, raw: Tensor) -> Tensor:
        """Makes the decoder's output a valid prediction: (B, C, H, W) -> float32 (B, C, H, W)."""

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Mean loss over the valid pixels of the batch, a float32 scalar.

        It is 0 with a gradient of 0 when no pixel is valid. No label under an unset mask reaches value or
        gradient, not even a NaN.

        Args:
            prediction: Activated prediction, (B, C, H, W).
            target: Labels as the task defines them.
            mask: True where the label is valid, bool (B, H, W).

        Raises:
            SimoError: When the shapes do not fit each other.
        """

    @property
    def primary(self) -> str:
        """Name of the metric that counts in Δ and in selection, under the protocol `pooled`."""
        return self.primary_under("pooled")

    def primary_under(self, protocol: str) -> str:
        """Name of the metric that counts in Δ under a protocol.

        Raises:
            SimoError: When there is no such protocol, or it knows no task of this kind.
        """
        return find_protocol(protocol).measure(self.kind).primary

    def metric(self, protocol: str = "pooled") -> Metric:
        """A fresh accumulator for this task.

        Args:
            protocol: One of `metrics.PROTOCOLS`.

        Raises:
            SimoError: When there is no such protocol, or it knows no task of this kind.
        """
        return find_protocol(protocol).measure(self.kind).build(self.name, self.out_channels)

    @abstractmethod
    def draw(self, values: Tensor, mask: Tensor | None = None, limits: Limits | None = None) -> Picture:
        """A picture of one prediction or target: uint8 (H, W, 3), dark grey where the mask is unset.

        Args:
            values: Prediction or target (C, H, W); class indices and one-channel maps also as (H, W).
            mask: Valid pixels, bool (H, W); None draws all. Values that are not finite are never drawn.
            limits: Values at the ends of the colour map, where there is one. Default: `limits(values, mask)`.
                To draw a prediction on the scale of its target, pass `limits(target, its mask)`.

        Raises:
            SimoError: When shapes do not fit the task.
        """

    def limits(self, values: Tensor, mask: Tensor | None = None) -> Limits | None:
        """The range that `draw` spreads its colours over; None where colours have a fixed meaning."""
        return None


def as_planes(name: str, values: Tensor, channels: int) -> npt.NDArray[np.float64]:
    """Values to draw as float64 (C, H, W); a one-channel map may come as (H, W).

    Raises:
        SimoError: When the shape does not fit the number of channels.
    """
    if values.ndim == 2 and channels == 1:
        values = values[None]
    if values.ndim != 3 or values.shape[0] != channels:
        raise SimoError(f"{name}: cannot draw shape {tuple(values.shape)}, expected ({channels}, H, W) of one image")
    return values.detach().to("cpu", torch.float64).numpy()


def valid_plane(name: str, planes: npt.NDArray[Any], mask: Tensor | None) -> Valid:
    """Which pixels to draw, (C, H, W) -> (H, W): set in the mask and finite in all channels.

    Raises:
        SimoError: When the mask has another size than the values.
    """
    finite: Valid = np.isfinite(planes).all(axis=0)
    if mask is None:
        return finite
    if tuple(mask.shape) != finite.shape:
        raise SimoError(f"{name}: cannot draw with a mask of shape {tuple(mask.shape)}, expected {finite.shape}")
    valid: Valid = finite & mask.detach().cpu().numpy().astype(bool)
    return valid


def grey_out(picture: Picture, valid: Valid) -> Picture:
    """The picture with invalid pixels in dark grey."""
    return np.where(valid[..., None], picture, np.array(MASKED, dtype=np.uint8))
