"""What `merge` is told about the method: its options, the `--scale`, and the images to learn or to choose by."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from simo_merge.cli.merge_options import parse_settings
from simo_merge.cli.options import calibration_images, training_size
from simo_merge.data import DenseDataset, open_dataset
from simo_merge.errors import SimoError
from simo_merge.merging import DataMergeMethod, MergeMethod, TaskArithmetic
from simo_merge.merging.describe import method_named, option_defaults
from simo_merge.models import SingleTaskModel
from simo_merge.selection import Selection, select_by_agreement, select_by_validation
from simo_merge.weights import Base

_LOG = logging.getLogger(__name__)
AUTO = "auto"


@dataclass(frozen=True)
class MethodChoice:
    """What the command line says about the method; checked when it is made, before any work.

    method: its name. scale: a number, or auto. settings: `NAME=VALUE` texts. images, data, split, rank: to choose the
    scale by, or for a method that learns from images. seed: of a method that has such an option and no setting of it.

    Raises:
        SimoError: an unknown method or option, a scale that is neither a number nor auto, auto with nothing or too much
            to choose by or on the test split, images for a method that does not look at any or none for one that does,
            or a scale for a method that has none.
    """

    method: str
    scale: str | None = None
    settings: Sequence[str] = ()
    images: Path | None = None
    data: str | None = None
    split: str = "val"
    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        options = option_defaults(self.method)
        if self.scale is not None and "scale" not in options:
            raise SimoError(f"--scale is the coefficient of methods like {TaskArithmetic.name}; {self.method} has none")
        if self.scale == AUTO and self.method != TaskArithmetic.name:
            raise SimoError(
                f"--scale auto chooses the coefficient of {TaskArithmetic.name}; give {self.method} a number"
            )
        if self.scale is not None and self.scale != AUTO and not math.isfinite(_number(self.scale)):
            raise SimoError(f"--scale must be a finite number, got {self.scale}")
        made = self.made()
        if self.scale == AUTO:
            self._check_choosing()
        elif isinstance(made, DataMergeMethod):
            self._check_learning(made)
        elif self.images is not None or self.data is not None or self.rank is not None:
            raise SimoError(
                "--images, --data and --rank are for choosing the coefficient, or for methods that learn from images; "
                "add --scale auto, or choose such a method (--list-methods)"
            )

    def made(self) -> MergeMethod:
        """The method with its options; of a scale to be chosen the default."""
        options = parse_settings(self.settings, {} if self.scale is None else {"scale": "--scale"})
        if "seed" in option_defaults(self.method):
            options.setdefault("seed", self.seed)
        if self.scale not in (None, AUTO):
            options["scale"] = _number(str(self.scale))
        return method_named(self.method, options)

    def choose(
        self,
        experts: Sequence[SingleTaskModel],
        base: Base | None,
        device: torch.device,
        precision: str,
        resample_pos_embed: bool = False,
    ) -> Selection:
        """Try the coefficients, with `--images` or `--data`."""
        where: dict[str, Any] = {
            "base": base,
            "device": device,
            "precision": precision,
            "resample_pos_embed": resample_pos_embed,
        }
        if self.data is not None:
            return select_by_validation(experts, self._labelled(experts), **where)
        return select_by_agreement(experts, self._pictures(experts), rank=self.rank, **where)

    def chosen(self, scale: float) -> MergeMethod:
        """The method with the coefficient that was chosen."""
        return replace(self, scale=str(scale), images=None, data=None, rank=None).made()

    def calibration(self, experts: Sequence[SingleTaskModel]) -> DenseDataset:
        """The images that a method learns from."""
        method = self.made()
        if isinstance(method, DataMergeMethod) and method.needs_labels:
            return self._labelled(experts)
        return self._pictures(experts)

    def _check_choosing(self) -> None:
        if (self.images is None) == (self.data is None):
            raise SimoError("--scale auto takes --images DIR (without labels) or --data SPEC (validation split)")
        if self.data is not None and self.split == "test":
            raise SimoError("the coefficient is never chosen on the test split; give a validation split with --split")
        if self.data is not None and self.rank is not None:
            raise SimoError("--rank judges agreement of features, with --images; with --data the delta decides")

    def _check_learning(self, method: DataMergeMethod) -> None:
        if self.rank is not None:
            raise SimoError("--rank is for choosing the coefficient, with --scale auto and --images")
        if method.needs_labels and self.images is not None:
            raise SimoError(f"{method.name} learns from labels; give --data SPEC with --split, in place of --images")
        if (self.images is None) == (self.data is None):
            labelled = "--data SPEC" if method.needs_labels else "--images DIR, or --data SPEC"
            raise SimoError(f"{method.name} learns from images; give {labelled} with --split")
        if self.data is not None and self.split == "test":
            if method.needs_labels:
                raise SimoError(
                    f"{method.name} learns from labels, and those of the test split are for the last word only"
                )
            _LOG.warning("learning from the test split's pictures: scores on that split will flatter the model")

    def _labelled(self, experts: Sequence[SingleTaskModel]) -> DenseDataset:
        return open_dataset(str(self.data), self.split, [expert.task.name for expert in experts])

    def _pictures(self, experts: Sequence[SingleTaskModel]) -> DenseDataset:
        trained = training_size(experts[0], list(experts))
        return calibration_images(self.images, self.data, self.split, None, trained)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise SimoError(f"--scale is a number or {AUTO}, got {text!r}") from error
