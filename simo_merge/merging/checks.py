"""What must hold before experts can be merged, with messages that say what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from simo_merge.data import DenseDataset
from simo_merge.errors import SimoError
from simo_merge.merging.grids import check_base_at, image_size_of, other_grid
from simo_merge.merging.method import DataMergeMethod
from simo_merge.merging.passes import check_finite
from simo_merge.merging.positions import POSITIONS
from simo_merge.models import BaseRecord, SingleTaskModel
from simo_merge.scoring import scorable_tasks
from simo_merge.weights import Base
from simo_merge.weights.loading import GRID_TENSORS

_POSITIONS = f"vit.{POSITIONS}"


@dataclass(frozen=True)
class ExpertFacts:
    """What the checks look at: an expert without its weights.

    grid_size: the image size (H, W) of the encoder's position embeddings.
    shapes: of the encoder's tensors, by their names in the encoder.
    """

    task: str
    encoder: str
    taps: tuple[int, ...]
    base: BaseRecord | None
    grid_size: tuple[int, int]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, expert: SingleTaskModel) -> ExpertFacts:
        """The facts of a model."""
        encoder = expert.encoder
        shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
        return cls(expert.task.name, encoder.name, tuple(encoder.taps), expert.base, encoder.grid_size, shapes)


def facts_of(experts: Sequence[SingleTaskModel | ExpertFacts]) -> list[ExpertFacts]:
    """The facts of models, or those given."""
    return [expert if isinstance(expert, ExpertFacts) else ExpertFacts.of(expert) for expert in experts]


def shared_image_size(experts: Sequence[SingleTaskModel | ExpertFacts]) -> tuple[int, int] | None:
    """The image size (H, W) to load their base with: what all have, or None, the encoder's own, where they differ."""
    facts = facts_of(experts)
    sizes = {expert.grid_size for expert in facts if _POSITIONS in expert.shapes}
    return facts[0].grid_size if len(sizes) < 2 else None


def check_experts(experts: Sequence[SingleTaskModel | ExpertFacts], any_grid: bool = False) -> None:
    """Refuse experts that do not belong together.

    Args:
        experts: two or more.
        any_grid: whether their position embeddings may have different grids, because they will be resampled.

    Raises:
        SimoError: fewer than two, one task twice, or encoders of different names, taps, sizes or bases.
    """
    if len(experts) < 2:
        raise SimoError(f"merging takes at least two experts, got {len(experts)}")
    facts = facts_of(experts)
    names = [expert.task for expert in facts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SimoError(f"two experts are for the same task: {', '.join(twice)}; give one expert a task")
    first, recorded = facts[0], next((expert for expert in facts if expert.base is not None), facts[0])
    for other in facts[1:]:
        pair = f"{first.task} and {other.task}"
        if other.encoder != first.encoder:
            raise SimoError(
                f"the experts for {pair} have different encoders, {first.encoder} and {other.encoder}; "
                "only experts of one base can be merged"
            )
        if other.taps != first.taps:
            raise SimoError(
                f"the decoders of {pair} read different blocks, {first.taps} and {other.taps}; "
                "train them with the same taps"
            )
        _check_shapes(first, other, pair, any_grid)
        if other.grid_size == recorded.grid_size or not any_grid:  # of another grid the same base has another record
            _check_recorded(recorded, other)


def check_base(base: Base, experts: Sequence[SingleTaskModel | ExpertFacts], any_grid: bool = False) -> None:
    """Refuse a base that the experts did not come from, or that does not fit them.

    Args:
        base: the base.
        experts: what `check_experts` let pass.
        any_grid: whether their position embeddings may have other grids than the base's.

    Raises:
        SimoError: another fingerprint than an expert records, other tensors or other shapes.
    """
    facts = facts_of(experts)
    size = image_size_of(base.vit)
    for expert in facts:
        record, elsewhere = expert.base, expert.grid_size != size and _POSITIONS in expert.shapes
        if elsewhere and not any_grid:
            raise SimoError(other_grid(f"the expert for {expert.task}", expert.grid_size, "the base", size))
        if elsewhere and record is not None:
            check_base_at(base, record, expert.grid_size, f"the expert for {expert.task}")
        elif record is not None and record.sha256 != base.sha256:
            raise SimoError(
                f"the base given is {base.name} ({base.source}, {base.sha256[:12]}), but the expert for "
                f"{expert.task} came from {record.name} ({record.source}, {record.sha256[:12]}); give the base "
                "that the experts were fine-tuned from"
            )
    ours = {f"vit.{name}": tuple(tensor.shape) for name, tensor in base.vit.state_dict().items()}
    for expert in facts:
        different = sorted(name.removeprefix("vit.") for name in ours.keys() ^ expert.shapes.keys())
        if different:
            raise SimoError(f"base and experts have different tensors: {', '.join(different[:4])}")
        resampled = {_POSITIONS} if expert.grid_size != size else set()
        reshaped = [name.removeprefix("vit.") for name in ours.keys() - resampled if ours[name] != expert.shapes[name]]
        if reshaped:
            raise SimoError(
                f"base and experts differ in the shape of {', '.join(sorted(reshaped)[:4])}; load the base with the "
                "image size of the experts"
            )


def check_state_finite(state: Mapping[str, Tensor], whose: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        SimoError: it names the first such tensor.
    """
    for name, tensor in state.items():
        check_finite(tensor, name, whose)


def check_images(
    method: DataMergeMethod, experts: Sequence[SingleTaskModel], images: DenseDataset | None
) -> DenseDataset:
    """The images that a method is to learn from; those that it cannot or must not learn from are refused.

    Raises:
        SimoError: no images; and where the method reads labels, the test split, or a task without labels or with labels
            of another meaning.
    """
    if images is None or len(images) == 0:
        raise SimoError(f"{method.name} learns from images; give it calibration images (images=...)")
    if method.needs_labels:
        tasks = {expert.task.name: expert.task for expert in experts}
        missing = [name for name in tasks if name not in images.tasks]
        where = f"{images.name} ({images.split})"
        if missing:
            raise SimoError(
                f"{method.name} with these options learns from labels, and {where} has none for {', '.join(missing)}; "
                "give it labelled images, or options that need no labels"
            )
        if images.split == "test":
            raise SimoError(
                f"{method.name} with these options does not learn from the labels of {where}, which are for the last "
                "word only; take another split"
            )
        scorable_tasks(tasks, images)
    return images


def _check_shapes(first: ExpertFacts, other: ExpertFacts, pair: str, any_grid: bool) -> None:
    ours, theirs = first.shapes, other.shapes
    if ours.keys() != theirs.keys():
        different = sorted(ours.keys() ^ theirs.keys())
        raise SimoError(f"the encoders of {pair} have different tensors: {', '.join(different[:4])}")
    for name in ours:
        if ours[name] == theirs[name] or (name == _POSITIONS and first.grid_size != other.grid_size):
            continue
        cause = "they are different encoders"
        if name.endswith(GRID_TENSORS):
            cause = "they were trained at different resolutions. Train them with one image size"
        raise SimoError(
            f"the encoders of {pair} have {name} of different shapes, {ours[name]} and {theirs[name]}: {cause}"
        )
    if _POSITIONS not in ours or any_grid:
        return
    # Grids, not shapes: 9x12 and 12x9 have as many positions.
    if first.grid_size != other.grid_size:
        raise SimoError(
            other_grid(f"the expert for {first.task}", first.grid_size, f"that for {other.task}", other.grid_size)
        )


def _check_recorded(first: ExpertFacts, other: ExpertFacts) -> None:
    ours, theirs = first.base, other.base
    if ours is not None and theirs is not None and ours.sha256 != theirs.sha256:
        raise SimoError(
            f"the experts for {first.task} and {other.task} come from different bases: {ours.name} "
            f"({ours.source}, {ours.sha256[:12]}) and {theirs.name} ({theirs.source}, {theirs.sha256[:12]}). Task "
            "vectors of different bases cannot be added; fine-tune both from one"
        )
