"""What every merge method is: a small typed object around a pure function on one parameter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from simo_merge.data import DenseDataset
from simo_merge.merging.parameter import Parameter, Parameters
from simo_merge.models import SingleTaskModel
from simo_merge.weights import Base


class MergeMethod(ABC):
    """Maps one parameter of base and experts to the merged one; a frozen dataclass whose fields are its options.

    To add a method: a file with such a class, and its entry in `merging.registry.MERGE_METHODS`.
    """

    name: ClassVar[str]

    @property
    def by_entry(self) -> bool:
        """Whether a merged entry depends on that entry of base and experts alone, beside `statistics`.

        Parameters may then come in flattened pieces that stay in the cache while they are read, merged and written: to
        `merge`, and to `statistics` too, where a name comes once for each of its pieces (`Parameter.start`). A class
        that overrides `merge` or `statistics` must say it anew.
        """
        return False

    def statistics(self, parameters: Parameters) -> Any:
        """What `merge` must know of all parameters together; a method that needs nothing makes no pass.

        Args:
            parameters: Makes a pass over all parameters, in a fixed order.
        """
        return None

    @abstractmethod
    def merge(self, parameter: Parameter, statistics: Any) -> Tensor:
        """The merged parameter, of the shape and type of `parameter.base`, which it must not change.

        Args:
            parameter: Base and experts.
            statistics: What `statistics` returned.
        """

    def parameters(self) -> dict[str, Any]:
        """The options, as plain JSON values."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]  # every method is a dataclass

    def record(self, statistics: Any) -> dict[str, Any]:
        """What a checkpoint says of the merge: the options and, for a method that learns, what it has learned.

        Args:
            statistics: What `statistics` or `observe` returned.
        """
        return self.parameters()


def merges_by_entry(method: MergeMethod) -> bool:
    """Whether `by_entry` holds: it was said by the class whose `merge` and `statistics` it is, or by one below it."""
    lineage = type(method).__mro__
    said, *about = (
        next(kind for kind in lineage if name in vars(kind)) for name in ("by_entry", "merge", "statistics")
    )
    return method.by_entry and all(issubclass(said, kind) for kind in about)


class TaskSpecificMethod(MergeMethod):
    """A method that gives every task its own version of the merged encoder: T encoder passes instead of one.

    `merge` gives what the versions share; `merge_for_tasks` gives the versions.
    """

    @abstractmethod
    def merge_for_tasks(self, parameter: Parameter, statistics: Any) -> Tensor:
        """Every task's own merged parameter, (T, ...), in the order of the experts."""


@dataclass(frozen=True)
class MergeData:
    """What a method that learns from images may look at.

    Attributes:
        base: The base weights.
        experts: The single-task models, in the order of the merge; they are not changed.
        images: Calibration images; labels are read only by methods that say they need them.
        device: Where to compute.
        precision: Of forward passes: one of `device.PRECISIONS`.
        seed: Of everything drawn at random.
    """

    base: Base
    experts: tuple[SingleTaskModel, ...]
    images: DenseDataset
    device: torch.device
    precision: str = "float32"
    seed: int = 0


class DataMergeMethod(MergeMethod):
    """A method that looks at images first: `observe` takes the place of `statistics`."""

    @property
    def needs_labels(self) -> bool:
        """Whether it reads the labels of the images; it may depend on the options."""
        return False

    @abstractmethod
    def observe(self, given: MergeData) -> Any:
        """What `merge` must know: the outcome of looking at the images."""
