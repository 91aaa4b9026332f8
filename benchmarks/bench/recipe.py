"""The recipe of a benchmark: data, encoder, training and rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from simo_merge.errors import SimoError, nearest
from simo_merge.merging import MERGE_METHODS, MergeMethod, TaskSpecificMethod, merge_method
from simo_merge.realign import Realignment, realignment
from simo_merge.training import JointConfig, TrainConfig, weighting_named
from simo_merge.weights import DEFAULT_NAME

Count = Annotated[int, Field(ge=1)]
Options = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Strict):
    """Which images serve for what; splits as `parts.open_part` reads them.

    options: of the data set, as `{"size": "280x378"}`. validation: labelled, to choose options of merges on.
    calibration: re-alignments are fitted to it. limit: at most so many images of each split.
    """

    options: dict[str, str] = {}
    train: str
    calibration: str
    validation: str
    test: str
    limit: Count | None = None


class EncoderChoice(_Strict):
    """A timm ViT, where its weights come from (`weights.load_base`), and the blocks that decoders read."""

    name: str = DEFAULT_NAME
    weights: str | None = None
    taps: tuple[int, ...] | None = None


class Merge(_Strict):
    """A merge method. choose: options to choose, with the values to try; by: delta on the validation split (labels)
    or agreement with the experts' features on the calibration images (none). rank: of the closed-form surgery after
    which agreement is taken. align: names of the re-alignments that it gets, where not all of the recipe's."""

    method: str
    label: str | None = None
    options: Options = {}
    choose: dict[str, list[Any]] = {}
    by: Literal["validation", "agreement"] = "agreement"
    rank: Count | None = None
    align: Annotated[tuple[str, ...] | None, Field(exclude=True)] = None  # decides which rows there are

    @property
    def name(self) -> str:
        return self.label or self.method

    @property
    def shares_encoder(self) -> bool:
        """Whether one encoder serves all tasks, so that there is something to re-align."""
        return not issubclass(MERGE_METHODS[self.method], TaskSpecificMethod)

    def made(self) -> MergeMethod:
        return merge_method(self.method, self.options)


class Align(_Strict):
    """A re-alignment and its options.

    after: a re-alignment inside the encoder that goes before it. counts: numbers of images on a curve that it is fitted
    to, where not all of the curve's.
    """

    method: str
    label: str | None = None
    options: Options = {}
    after: Align | None = None
    counts: Annotated[tuple[Count, ...] | None, Field(exclude=True)] = None  # decides which rows there are

    @field_validator("after")
    @classmethod
    def _inside_the_encoder(cls, after: Align | None) -> Align | None:
        first = None if after is None else after.made()
        if first is not None and not (first.changes_encoder or first.task_specific):
            raise ValueError(f"{first.label} is no change inside the encoder, so nothing can come after it")
        return after

    @model_serializer(mode="wrap")
    def _without_nothing(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`after` is written where there is one, so that rows without are those that they were."""
        found: dict[str, Any] = whole(self)
        return found if self.after is not None else {key: found[key] for key in found if key != "after"}

    @property
    def name(self) -> str:
        before = "" if self.after is None else f"{self.after.name}+"
        return self.label or before + self.made().label

    def fitted_to(self, count: int, whole: int) -> bool:
        """Whether it has a row at this number of images of a curve that ends at `whole`."""
        return self.counts is None or count in {min(asked, whole) for asked in self.counts}

    def made(self, steps: int | None = None) -> Realignment:
        return realignment(self.method, self.options if steps is None else self.options | {"steps": steps})


class Weighted(_Strict):
    """Joint training under a weighting.

    distill: weight of the distance to the experts' features. steps: of both stages together, where they are not those
    of `Joint.training`; the row's name says so. seeds: those it is trained with, where not with all of the recipe.
    align: names of the re-alignments that it gets; none by default.
    """

    weighting: str = "equal"
    options: Options = {}
    distill: float = 0.0
    steps: Count | None = None
    seeds: Annotated[tuple[int, ...] | None, Field(exclude=True)] = None  # decides which rows there are, as align does
    align: Annotated[tuple[str, ...], Field(exclude=True)] = ()
    label: str | None = None

    @property
    def name(self) -> str:
        shown = f"joint-{self.weighting}" + ("-distilled" if self.distill else "")
        return self.label or shown + (f"-{self.steps}-steps" if self.steps else "")

    def trained_with(self, seed: int) -> bool:
        return self.seeds is None or seed in self.seeds


class Joint(_Strict):
    """Joint training: what differs from the experts' options, and the weightings that have a row."""

    training: Options = {}
    rows: tuple[Weighted, ...] = (Weighted(),)


class Curve(_Strict):
    """One curve of delta against cost. method: a re-alignment, or the name of a joint row; steps: its points, none
    for a fit without steps."""

    method: str
    options: Options = {}
    steps: tuple[Count, ...] = ()


class Budget(_Strict):
    """What `budget.py` compares. merge: name of the merge that is re-aligned."""

    merge: str
    curves: tuple[Curve, ...]


class Samples(_Strict):
    """What `sample_efficiency.py` compares. counts: images; all of the calibration split come last by themselves."""

    merge: str
    counts: tuple[Count, ...]
    align: tuple[Align, ...]
    joint: tuple[str, ...] = ()


class Scaling(_Strict):
    """What `scaling_tasks.py` compares. tasks: whose subsets of two and more are merged; joint: rows of joint
    training; joint_sizes: sizes of the subsets that are trained jointly, none for all."""

    tasks: tuple[str, ...]
    merge: str
    align: tuple[Align, ...]
    joint: tuple[str, ...] = ()
    joint_sizes: tuple[Count, ...] = ()


class Quality(_Strict):
    """What `realign_quality.py` compares, beside the recipe's merges, re-alignments and joint rows.

    images: first calibration images that the table's fits see. base: names of re-alignments that are also fitted to the
    base, with nothing merged. fine_tuned: merge whose weights are all trained with the same images, on labels and on
    the experts' predictions; fine_tuning: what differs from the experts' training options.
    """

    images: Count
    base: tuple[str, ...] = ()
    fine_tuned: str | None = None
    fine_tuning: Options = {}


class Affinity(_Strict):
    """What `affinity.py` compares. tasks: whose subsets of two and more are merged and re-aligned. measures: none for
    all. options: of the measures, as `AffinityOptions` has them. encoders: numbers of encoders to group tasks into.
    joint: row of joint training, and joint_steps its small budget, for the pairs that `--joint` trains."""

    tasks: tuple[str, ...]
    merge: str
    align: Align
    measures: tuple[str, ...] | None = None
    options: Options = {}
    encoders: tuple[Count, ...] = (2, 3)
    joint: str | None = None
    joint_steps: Count = 200


class Recipe(_Strict):
    """Everything that a benchmark's numbers depend on, beside code and files.

    name: of results files. table: table of published.json that stands beside ours. training: options of
    `TrainConfig`, without the seed. protocol, batch_size, precision: of evaluation. align_experts: names of the
    re-alignments that the experts get too, each by itself: what the same images and steps give where nothing is merged.
    """

    name: str
    table: str | None = None
    data: Data
    tasks: tuple[str, ...]
    encoder: EncoderChoice = EncoderChoice()
    protocol: str = "pooled"
    batch_size: Count = 16
    precision: str = "auto"
    seeds: tuple[int, ...] = (0, 1, 2)
    training: Options
    joint: Joint = Joint()
    merges: tuple[Merge, ...]
    align: tuple[Align, ...]
    align_experts: tuple[str, ...] = ()
    budget: Budget | None = None
    samples: Samples | None = None
    scaling: Scaling | None = None
    quality: Quality | None = None
    affinity: Affinity | None = None

    def merge(self, name: str) -> Merge:
        """The merge of this name.

        Raises:
            SimoError: there is none; the known ones are listed.
        """
        return _named(self.merges, name, "merge")

    def alignment(self, name: str) -> Align:
        """The re-alignment of this name.

        Raises:
            SimoError: there is none; the known ones are listed.
        """
        return _named(self.align, name, "re-alignment")

    def alignments(self, merge: Merge) -> list[Align]:
        """The re-alignments that a merge gets: none where every task has an encoder of its own."""
        if not merge.shares_encoder:
            return []
        return list(self.align) if merge.align is None else self.chosen(merge.align)

    def chosen(self, names: tuple[str, ...]) -> list[Align]:
        """The re-alignments of these names, as far as the recipe has them."""
        return [align for align in self.align if align.name in names]

    def weighted(self, name: str) -> Weighted:
        """The joint row of this name.

        Raises:
            SimoError: there is none; the known ones are listed.
        """
        return _named(self.joint.rows, name, "joint row")

    def train_config(self, seed: int) -> TrainConfig:
        """Options of the experts."""
        return TrainConfig(**self.training, seed=seed)

    def fine_tuning_config(self, seed: int) -> TrainConfig:
        """Options of training all weights of a merge: those of the experts, without the stage that trains decoders."""
        more = self.quality.fine_tuning if self.quality else {}
        return TrainConfig(**self.training | {"decoder_steps": 0} | more, seed=seed)

    def joint_config(self, row: Weighted, seed: int, steps: int | None = None) -> JointConfig:
        """Options of joint training; `steps` of both stages together, parted as the recipe parts them.

        Without `steps` they are the row's, and without those the recipe's.
        """
        options = self.training | self.joint.training
        steps = row.steps if steps is None else steps
        if steps is not None:
            whole = JointConfig(**options)
            first = round(steps * whole.decoder_steps / (whole.decoder_steps + whole.steps))
            options = options | {"decoder_steps": first, "steps": steps - first}
        weighting = weighting_named(row.weighting, row.options)
        return JointConfig(**options, weighting=weighting, distill=row.distill, seed=seed)


def _named(rows: tuple[Any, ...], name: str, what: str) -> Any:
    found = {row.name: row for row in rows}
    if name not in found:
        raise SimoError(f"the recipe has no {what} {name!r}; it has {', '.join(found)}{nearest(name, found)}")
    return found[name]
