"""The kinds of label files: what the stored numbers mean, and the task that they teach."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from simo_merge.tasks import Depth, Disparity, Normals, Regression, Segmentation, Task

_AXES = {"right": (0, 1), "left": (0, -1), "down": (1, 1), "up": (1, -1), "viewer": (2, 1), "away": (2, -1)}


class Labels(BaseModel, ABC):
    """What every kind of label file has in common.

    Args:
        folder: Folder of the files inside the data set; default: the task's name.
        suffix: `.png` (or another picture), or `.npy`.
        mask_folder: Folder of pictures of the same names that are not zero where the label is valid, if any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = ""
    suffix: str = Field(default=".png", pattern=r"^\.[A-Za-z0-9]+$")
    mask_folder: str | None = None

    @abstractmethod
    def task(self, name: str) -> Task:
        """The task that these labels teach."""


class SegmentationLabels(Labels):
    """Class ids. A palette picture holds them as its indices, whatever its colours are.

    Args:
        classes: Names, in the order of their ids.
        colours: One 8-bit RGB colour a class, for drawing.
        first_class: The id of the first class in the files.
        invalid: Ids that mean "no label", as 0, 255 or -1.
    """

    kind: Literal["segmentation"] = "segmentation"
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...] | None = None
    first_class: int = 0
    invalid: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _invalid_ids_are_no_classes(self) -> SegmentationLabels:
        ids = range(self.first_class, self.first_class + len(self.classes))
        both = [value for value in self.invalid if value in ids]
        if both:
            raise ValueError(f"invalid ids {both} are also ids of classes ({ids.start} to {ids.stop - 1})")
        return self

    def task(self, name: str) -> Segmentation:
        """Segmentation into `classes`; class index = id - `first_class`."""
        return Segmentation(name=name, classes=self.classes, palette=self.colours)


class ValueLabels(Labels):
    """Labels that are numbers: value = stored * `scale` + `offset`.

    Args:
        scale, offset: From the stored number to `unit`, as 0.001 for millimetres that are to be metres.
        unit: Unit of the value.
        invalid: *Stored* numbers that mean "no label", as 0 or 65535; `.nan` and `.inf` can be listed too.
        bits: 8 or 16: what a picture's channels must have; a file with another depth is an error.
    """

    scale: float = Field(default=1.0, allow_inf_nan=False)
    offset: float = Field(default=0.0, allow_inf_nan=False)
    unit: str = ""
    invalid: tuple[float, ...] = ()
    bits: Literal[8, 16] | None = None

    @field_validator("scale")
    @classmethod
    def _scale_is_not_zero(cls, value: float) -> float:
        if value == 0:
            raise ValueError("a scale of 0 would make every value the same")
        return value


class DepthLabels(ValueLabels):
    """Depth along the optical axis, positive.

    Args:
        typical: About the median of the data, in `unit`; fine-tuning starts from it.
    """

    kind: Literal["depth"] = "depth"
    unit: str = "m"
    invalid: tuple[float, ...] = (0.0,)
    typical: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def task(self, name: str) -> Depth:
        """Depth in `unit`."""
        return Depth(name=name, unit=self.unit, scale=self.typical)


class DisparityLabels(ValueLabels):
    """Disparity, 0 (infinitely far) or more.

    Args:
        typical: About the median of the data, in `unit`; fine-tuning starts from it.
    """

    kind: Literal["disparity"] = "disparity"
    unit: str = "px"
    invalid: tuple[float, ...] = (0.0,)
    typical: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def task(self, name: str) -> Disparity:
        """Disparity in `unit`."""
        return Disparity(name=name, unit=self.unit, scale=self.typical)


class NormalsLabels(Labels):
    """Surface normals: an 8-bit RGB picture holds n = 2 x / 255 - 1, a `.npy` file the components.

    Vectors are brought to unit length when read; one shorter than 0.1 (as the grey 127 or 128) has no
    direction and is invalid.

    Args:
        axes: Where each channel's positive end points: right or left, down or up, viewer or away. When read,
            channels are reordered and negated to x right, y down, z towards the viewer.
        invalid: *Stored* vectors that mean "no label".
    """

    kind: Literal["normals"] = "normals"
    axes: tuple[str, str, str] = ("right", "down", "viewer")
    invalid: tuple[tuple[float, float, float], ...] = ()
    bits: ClassVar[int] = 8

    @field_validator("axes")
    @classmethod
    def _axes_span_space(cls, axes: tuple[str, str, str]) -> tuple[str, str, str]:
        unknown = [axis for axis in axes if axis not in _AXES]
        if unknown:
            raise ValueError(f"unknown directions {unknown}; the known ones are {', '.join(_AXES)}")
        if {_AXES[axis][0] for axis in axes} != {0, 1, 2}:
            raise ValueError("expected one of right/left, one of down/up, one of viewer/away, in the file's order")
        return axes

    @property
    def channels_and_signs(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """For x right, y down and z towards the viewer: the file's channel, and the sign to give it."""
        by_axis = {_AXES[axis][0]: (channel, _AXES[axis][1]) for channel, axis in enumerate(self.axes)}
        (x, sx), (y, sy), (z, sz) = by_axis[0], by_axis[1], by_axis[2]
        return (x, y, z), (sx, sy, sz)

    def task(self, name: str) -> Normals:
        """Unit normals, x right, y down, z towards the viewer."""
        return Normals(name=name)


class RegressionLabels(ValueLabels):
    """Any other map of numbers.

    Args:
        channels: How many channels a file has.
        value_range: Lowest and highest value that can occur, for drawing.
    """

    kind: Literal["regression"] = "regression"
    channels: int = Field(default=1, ge=1)
    value_range: tuple[float, float] | None = None

    def task(self, name: str) -> Regression:
        """Regression of `channels` numbers a pixel."""
        return Regression(name=name, channels=self.channels, unit=self.unit, value_range=self.value_range)


LABEL_KINDS: dict[str, type[Labels]] = {
    "segmentation": SegmentationLabels,
    "depth": DepthLabels,
    "disparity": DisparityLabels,
    "normals": NormalsLabels,
    "regression": RegressionLabels,
}
"""The kinds of labels by the value of `kind`; they match `simo_merge.tasks.TASK_KINDS`."""
