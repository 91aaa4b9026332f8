"""What a re-alignment is, what it is fitted to, and what all of them need."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from numbers import Real
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import torch

from simo_merge.data import DenseDataset
from simo_merge.errors import SimoError
from simo_merge.models import Aligner, MultiTaskModel, SingleTaskModel
from simo_merge.realign.features import CalibrationFeatures
from simo_merge.realign.folds import FOLDS, FoldedMoments, folded_moments
from simo_merge.realign.moments import Moments, TapMoments, add_up_moments, summing_device, tap_moments
from simo_merge.realign.running import MomentsWanted, RunningMoments

CAPTURE = "capture features instead, in files where they are too many for memory: keep=OnDisk(DIR), --capture-dir DIR"


def feature_moments(
    features: CalibrationFeatures, chunk: int = 64, device: torch.device | str = "cpu", precise: bool = True
) -> list[TapMoments]:
    """The moments of every tap, for all tasks at once, summed over chunks of images to bound the float64 copies.

    Where each process holds a share of the images, they are those of all shares.

    device: where products are summed, if it computes float64; the moments lie on the CPU. precise: see `Moments.of`.
    """
    merged, experts = features.merged, features.experts
    where = summing_device(device)
    found: list[TapMoments] = []
    for tap in range(len(merged.patches)):
        total: TapMoments | None = None
        for start in range(0, max(len(merged), 1), chunk):  # the moments of no image are zeros
            part = slice(start, start + chunk)
            moments = tap_moments(
                merged.patches[tap][part].to(where),
                merged.prefix[tap][part].to(where),
                {task: f.patches[tap][part].to(where) for task, f in experts.items()},
                {task: f.prefix[tap][part].to(where) for task, f in experts.items()},
                precise,
            )
            total = moments if total is None else total + moments
        assert total is not None
        found.append(total.to(torch.device("cpu")))
    if not merged.whole:
        add_up_moments(found)
    return found


@dataclass(frozen=True)
class Calibration:
    """What a re-alignment is fitted to: captured features or their moments, the images, where to fit, and the seed.

    captured: None where images were streamed; `streamed` are the moments then, those that the method wants.
    record: what a method adds to the alignment record beside its options, as plain JSON values.
    experts: the single-task models, for methods that run them again; they are not changed.
    precision: in which features were captured, and are captured again where the encoder has changed.
    """

    captured: CalibrationFeatures | None
    images: DenseDataset
    device: torch.device
    seed: int = 0
    record: dict[str, Any] = field(default_factory=dict)
    experts: Mapping[str, SingleTaskModel] = field(default_factory=dict)
    streamed: RunningMoments | None = None
    precision: str = "float32"

    @property
    def features(self) -> CalibrationFeatures:
        """The captured features.

        Raises:
            SimoError: the images were streamed.
        """
        if self.captured is None:
            raise SimoError(f"the images were streamed, and of their features only moments are left; {CAPTURE}")
        return self.captured

    def moments(self) -> list[TapMoments]:
        """The moments of every tap, for all tasks at once."""
        if self.streamed is None:
            return feature_moments(self.features, device=self.device)
        return self.streamed.folded().of_taps()

    def folded(self, joint: bool, folds: int = FOLDS) -> FoldedMoments:
        """The moments of every tap in folds of images; see `folded_moments`."""
        if self.streamed is None:
            return folded_moments(self.features, joint, folds, device=self.device)
        wanted = self.streamed.wanted
        assert (wanted.joint, wanted.folds) == (joint, folds), f"{wanted} were streamed"
        return self.streamed.folded()

    def alone(self) -> Mapping[tuple[str, int], Moments]:
        """The moments of the experts' patches alone, for each task and tap, of float32 products."""
        if self.streamed is not None:
            return self.streamed.alone
        found: dict[tuple[str, int], Moments] = {}
        for task, expert in self.features.experts.items():
            of_taps = feature_moments(CalibrationFeatures(expert, {}), device=self.device, precise=False)
            found |= {(task, tap): moments.patches for tap, moments in enumerate(of_taps)}
        return found


class Realignment(ABC):
    """A way to give each decoder back the features that it was trained on.

    `fit` changes the model it is given (a copy that `realign` made) and returns how many parameters it fitted.

    Raises:
        SimoError: an option that is to be a number, and is none.
    """

    name: ClassVar[str]
    changes_encoder: ClassVar[bool] = False  # then features are captured again, and aligners may be fitted afterwards
    task_specific: ClassVar[bool] = False  # the same, where it gives tasks blocks of their own (`block_changes`)

    def __post_init__(self) -> None:
        check_numbers(self, self.name)

    @property
    def needs_labels(self) -> bool:
        """Whether it reads the labels of the calibration images."""
        return False

    def check(self, model: MultiTaskModel, images: DenseDataset) -> None:
        """Refuse, before any encoder is run, a model or images that it cannot be fitted to.

        Raises:
            SimoError: labels are needed, and the images have none for a task; a method may refuse more.
        """
        missing = [task for task in model.tasks if task not in images.tasks] if self.needs_labels else []
        if missing:
            raise SimoError(
                f"{self.label} needs labels for {', '.join(missing)}, and {images.name} ({images.split}) has "
                f"{', '.join(images.tasks) or 'none'}; give images with these labels, or take a method without"
            )

    @property
    def label(self) -> str:
        """What the method is called in results: its name, and more where one name covers two variants."""
        return self.name

    def from_moments(self) -> MomentsWanted | None:
        """The moments that it is fitted to, if it reads nothing else of the images; then they can be streamed."""
        return None

    def for_one_of(self, tasks: int) -> Realignment:
        """The method as it is fitted to one of so many tasks, where each is fitted by itself."""
        return self

    @abstractmethod
    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Fit to captured features (and, where `needs_labels`, to the labels of the same images)."""

    def parameters(self) -> dict[str, Any]:
        """The options, as plain JSON values."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]  # every method is a dataclass


class TapwiseRealignment(Realignment):
    """One that is fitted to each tap's moments by itself."""

    def from_moments(self) -> MomentsWanted:
        """Those of each tap, over all images."""
        return MomentsWanted()


def new_aligner(model: MultiTaskModel, kind: str, **options: Any) -> Aligner:
    """A fresh aligner for the taps of this model."""
    return Aligner(kind, model.encoder.tap_channels, model.encoder.prefix_tokens, **options)


def count(aligner: Aligner) -> int:
    """How many parameters an aligner has."""
    return sum(parameter.numel() for parameter in aligner.parameters())


def fit_each_tap(
    model: MultiTaskModel,
    given: Calibration,
    kind: str,
    write: Callable[[TapMoments, str, Any], None],
    **options: Any,
) -> int:
    """Give every task a fresh aligner whose taps are written one by one; how many parameters they have.

    Args:
        kind, options: of the aligner.
        write: (moments of a tap, task, tap aligner) -> sets the tap aligner.
    """
    moments, fitted = given.moments(), 0
    for task in model.tasks:
        aligner = new_aligner(model, kind, **options)
        for found, module in zip(moments, aligner.taps, strict=True):
            write(found, task, module)
        model.aligners[task] = aligner
        fitted += count(aligner)
    return fitted


def fitted_images(images: int, held_out: float) -> int:
    """How many of the images, the first ones, are fitted to; the others are held out, one at least.

    Neighbours are often of one scene, so they stay together. 0 for a single image, of which nothing can be held out.

    Raises:
        SimoError: a share that is not between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise SimoError(f"held_out is a share of the calibration images between 0 and 1, got {held_out}")
    return max(1, images - max(1, round(held_out * images))) if images > 1 else 0


def short(value: float) -> float:
    """A measured number as records hold it: five digits."""
    return float(f"{value:.5g}")


def check_numbers(options: Any, name: str) -> None:
    """Make the options of a dataclass that are to be numbers by their types plain ones, and refuse what is none.

    Numbers of NumPy and whole floats (16.0 as a rank) become Python's; types that cannot be read are passed over.

    Raises:
        SimoError: the first that is no such number, as 2.5 as a rank or a text as a ridge; it says what may be given.
    """
    if not is_dataclass(options):
        return
    try:
        hints = get_type_hints(type(options))
    except NameError:
        return
    for option in fields(options):
        hint = hints[option.name]
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if not {int, float} & set(kinds):
            continue
        words: list[Any] = [None] if NoneType in kinds else []
        words += [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        value = getattr(options, option.name)
        if any(value is word or (isinstance(word, str) and value == word) for word in words):
            continue
        number = _plain(value)
        if number is None or (float not in kinds and not isinstance(number, int)):
            known = ["a number" if float in kinds else "a whole number", *(repr(word) for word in words)]
            either = " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
            raise SimoError(f"{name} takes {either} as {option.name}, got {value!r}")
        object.__setattr__(options, option.name, number if float not in kinds or type(value) is int else float(value))


def _plain(value: Any) -> int | float | None:
    """The number that a value is, as Python has it, an int where it is whole; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    number = float(value)
    return int(number) if number.is_integer() else number


def check_rank(rank: int, ridge: float) -> None:
    """Refuse a rank below 1 and a ridge that is not positive.

    Raises:
        SimoError: either of them.
    """
    if rank < 1:
        raise SimoError(f"the rank of surgery must be 1 or more, got {rank}")
    if not 0 < ridge < math.inf:
        raise SimoError(f"ridge must be positive (it is relative to unit variance), got {ridge}")
