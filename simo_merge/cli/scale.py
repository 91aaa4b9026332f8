"""The `--scale` of `merge`: a number, or `auto` with something to choose by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simo_merge.cli.options import calibration_images, training_size
from simo_merge.data import open_dataset
from simo_merge.errors import SimoError
from simo_merge.merging import TaskArithmetic
from simo_merge.models import SingleTaskModel
from simo_merge.selection import Selection, select_by_agreement, select_by_validation
from simo_merge.weights import Base

AUTO = "auto"


@dataclass(frozen=True)
class ScaleChoice:
    """What the command line says about the coefficient; checked when it is made, before any work.

    Raises:
        SimoError: neither a number nor auto, auto with nothing or too much to choose by or on the test split,
            options of auto without it, or a scale for a method that has none.
    """

    method: str
    scale: str | None
    images: Path | None
    data: str | None
    split: str
    rank: int | None

    def __post_init__(self) -> None:
        if self.scale is not None and self.method != TaskArithmetic.name:
            raise SimoError(f"--scale is the coefficient of {TaskArithmetic.name}; {self.method} has none")
        if self.scale != AUTO:
            if self.images is not None or self.data is not None or self.rank is not None:
                raise SimoError("--images, --data and --rank are for choosing the coefficient; add --scale auto")
            if self.scale is not None and not math.isfinite(_number(self.scale)):
                raise SimoError(f"--scale must be a finite number, got {self.scale}")
        elif (self.images is None) == (self.data is None):
            raise SimoError("--scale auto takes --images DIR (without labels) or --data SPEC (validation split)")
        elif self.data is not None and self.split == "test":
            raise SimoError("the coefficient is never chosen on the test split; give a validation split with --split")
        elif self.data is not None and self.rank is not None:
            raise SimoError("--rank judges agreement of features, with --images; with --data the delta decides")

    def parameters(self) -> dict[str, float]:
        """The parameters of the merge method, where they are given as numbers."""
        return {} if self.scale in (None, AUTO) else {"scale": _number(str(self.scale))}

    def choose(self, experts: Sequence[SingleTaskModel], base: Base | None, device: str | None) -> Selection:
        """Try the coefficients, with `--images` or `--data`."""
        if self.data is not None:
            labelled = open_dataset(self.data, self.split, [expert.task.name for expert in experts])
            return select_by_validation(experts, labelled, base=base, device=device)
        trained = training_size(experts[0], list(experts))
        pictures = calibration_images(self.images, None, self.split, None, trained)
        return select_by_agreement(experts, pictures, base=base, device=device, rank=self.rank)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise SimoError(f"--scale is a number or {AUTO}, got {text!r}") from error
