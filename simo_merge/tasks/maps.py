"""Tasks whose prediction and target are continuous maps: depth, disparity, normals and any other regression."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from simo_merge.colours import Picture, magma, to_bytes, turbo, unit_interval
from simo_merge.errors import SimoError
from simo_merge.metrics.base import check_batch
from simo_merge.tasks.base import Limits, Name, Task, as_planes, grey_out, valid_plane

_PERCENTILES = (2.0, 98.0)


class MapTask(Task, ABC):
    """A task with a target of the prediction's shape, (B, C, H, W), and a loss that is a mean over pixels."""

    @abstractmethod
    def _pixel_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of each pixel, 2 x (B, C, H, W) -> (B, H, W)."""

    def loss(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The task's pixel loss, mean over the valid pixels of the batch."""
        check_batch(self.name, prediction, target, mask, channels=self.out_channels)
        # A NaN under the mask must go before the loss: after it, 0 times its gradient would still be NaN.
        known = torch.where(mask[:, None], target.float(), 0.0)
        pixels = self._pixel_loss(prediction.float(), known)
        return torch.where(mask, pixels, 0.0).sum() / mask.sum().clamp(min=1)

    def limits(self, values: Tensor, mask: Tensor | None = None) -> Limits | None:
        """The 2nd and 98th percentile of the valid values; (0, 1) when there are none."""
        planes = as_planes(self.name, values, self.out_channels)
        known = planes[:, valid_plane(self.name, planes, mask)]
        if known.size == 0:
            return 0.0, 1.0
        low, high = np.percentile(known, _PERCENTILES)
        return float(low), float(high)

    def _range(self, values: Tensor, mask: Tensor | None, limits: Limits | None) -> Limits:
        low, high = limits or self.limits(values, mask) or (0.0, 1.0)
        if low > high:
            raise SimoError(f"{self.name}: limits are ({low}, {high}), expected the lower one first")
        return low, high


class PositiveMap(MapTask, ABC):
    """Depth or disparity: one positive channel.

    Activation: scale · softplus(raw) / ln 2, so a raw output of 0 stands for `scale`. Target: float32
    (B, 1, H, W) in `unit`. Loss: mean absolute ("l1") or squared ("l2") error. Primary metric: abs.
    """

    near_is_small: ClassVar[bool]
    """Whether what is near has small values."""

    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    loss_name: Literal["l1", "l2"] = "l1"

    @property
    def out_channels(self) -> int:
        """One."""
        return 1

    def activate(self, raw: Tensor) -> Tensor:
        """Positive values: scale · softplus(raw) / ln 2, which is `scale` at a raw output of 0."""
        return F.softplus(raw.float()) * (self.scale / math.log(2))

    def draw(self, values: Tensor, mask: Tensor | None = None, limits: Limits | None = None) -> Picture:
        """Turbo colours, the near end of the limits red and the far end blue."""
        planes = as_planes(self.name, values, 1)
        valid = valid_plane(self.name, planes, mask)
        low, high = self._range(values, mask, limits)
        share = unit_interval(np.where(valid, planes[0], low), low, high)
        return grey_out(turbo(1.0 - share if self.near_is_small else share), valid)

    def _pixel_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return _distance(self.loss_name, prediction, target)


class Depth(PositiveMap):
    """Distance of each pixel along the optical axis.

    Args:
        unit: Unit of the target, as "m".
        scale: Depth of a raw output of 0, in `unit`. About the data's median is best: fine-tuning then starts
            from plausible depths, and its steps fit the unit.
        loss_name: "l1" or "l2".
    """

    near_is_small: ClassVar[bool] = True

    name: Name = "depth"
    kind: Literal["depth"] = "depth"
    unit: str = "m"


class Disparity(PositiveMap):
    """Inverse distance, as a pair of cameras sees it; 0 is infinitely far, and a valid value.

    Args:
        unit: Unit of the target, as "px@2048": pixels in an image 2048 wide.
        scale: Disparity of a raw output of 0, in `unit`; about the data's median is best.
        loss_name: "l1" or "l2".
    """

    near_is_small: ClassVar[bool] = False

    name: Name = "disparity"
    kind: Literal["disparity"] = "disparity"
    unit: str = "px"


class Normals(MapTask):
    """Direction of the surface at each pixel: a unit vector.

    Activation: raw / |raw| (a raw vector of length 0 stays 0). Target: float32 (B, 3, H, W), unit length.
    Loss: "cosine" = 1 − mean p·g, the loss in the SIMO paper (arXiv 2504.11268); or "l1" = mean |p − g| over
    pixels and channels, the loss in its code. Primary metric: mean angle in degrees.

    Args:
        loss_name: "cosine" or "l1".
        axes: What the three components mean, for people. The first must run along the image's rows, because a
            mirrored image negates it.
    """

    name: Name = "normals"
    kind: Literal["normals"] = "normals"
    unit: Literal["degrees"] = "degrees"
    loss_name: Literal["cosine", "l1"] = "cosine"
    axes: str = "x right, y down, z towards the viewer"

    @property
    def out_channels(self) -> int:
        """Three."""
        return 3

    def activate(self, raw: Tensor) -> Tensor:
        """Unit vectors: raw / |raw|."""
        # The bound keeps the gradient finite for vectors close to zero; shorter ones come out shorter than 1.
        return F.normalize(raw.float(), dim=1, eps=1e-6)

    def limits(self, values: Tensor, mask: Tensor | None = None) -> Limits | None:
        """Always None: the colour of a direction is fixed."""
        return None

    def draw(self, values: Tensor, mask: Tensor | None = None, limits: Limits | None = None) -> Picture:
        """Colour (n + 1)/2 of each vector; `limits` has no use here."""
        planes = as_planes(self.name, values, 3)
        valid = valid_plane(self.name, planes, mask)
        return grey_out(to_bytes((planes.transpose(1, 2, 0) + 1.0) / 2.0), valid)

    def _pixel_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        if self.loss_name == "cosine":
            return 1.0 - (prediction * target).sum(dim=1)
        return _distance("l1", prediction, target)


class Regression(MapTask):
    """Any other map: edges, keypoints, shading, reconstruction. The decoder's output is the prediction.

    Target: float32 (B, C, H, W). Loss: mean absolute ("l1") or squared ("l2") error over valid pixels and
    channels. Primary metric: abs.

    Args:
        channels: C.
        loss_name: "l1" or "l2".
        value_range: Lowest and highest value of the target, if known; `draw` spreads its colours over it.
        unit: Unit of the target, "" for none.
    """

    kind: Literal["regression"] = "regression"
    channels: int = Field(1, ge=1)
    loss_name: Literal["l1", "l2"] = "l1"
    value_range: Limits | None = None
    unit: str = ""

    @model_validator(mode="after")
    def _check_range(self) -> Regression:
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise SimoError(f"{self.name}: value_range is {self.value_range}, expected the lower value first")
        return self

    @property
    def out_channels(self) -> int:
        """C, the number of channels."""
        return self.channels

    def activate(self, raw: Tensor) -> Tensor:
        """The output as it is, in float32."""
        return raw.float()

    def limits(self, values: Tensor, mask: Tensor | None = None) -> Limits | None:
        """`value_range`, or the 2nd and 98th percentile of the valid values."""
        return self.value_range or super().limits(values, mask)

    def draw(self, values: Tensor, mask: Tensor | None = None, limits: Limits | None = None) -> Picture:
        """One channel in magma colours, two as red and green, of more the first three as red, green, blue."""
        planes = as_planes(self.name, values, self.channels)
        valid = valid_plane(self.name, planes, mask)
        low, high = self._range(values, mask, limits)
        unit = unit_interval(np.where(valid, planes, low), low, high)
        if self.channels == 1:
            return grey_out(magma(unit[0]), valid)
        if self.channels == 2:
            unit = np.concatenate([unit, np.full_like(unit[:1], 0.5)])
        return grey_out(to_bytes(unit[:3].transpose(1, 2, 0)), valid)

    def _pixel_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return _distance(self.loss_name, prediction, target)


def _distance(loss_name: Literal["l1", "l2"], prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute or squared error, mean over channels: 2 x (B, C, H, W) -> (B, H, W)."""
    error = prediction - target
    return (error.abs() if loss_name == "l1" else error.square()).mean(dim=1)
