"""Rows of one seed and one set of tasks: experts, merges, re-alignments and joint training."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.controls import fine_tuned, predicted
from bench.parts import Part, distinct
from bench.recipe import Align, Merge, Weighted
from bench.remembered import RememberedTaps
from bench.shelf import Shelf
from simo_merge.data import DenseDataset
from simo_merge.evaluation import evaluate, experts_row
from simo_merge.merging import DataMergeMethod, MergeMethod, TaskArithmetic, merge
from simo_merge.models import MergeRecord, MultiTaskModel, SingleTaskModel
from simo_merge.realign import CalibrationFeatures, Features, Realignment, realign
from simo_merge.results import ResultRow
from simo_merge.selection import Agreement, Criterion, MethodSelection, ValidationDelta, select
from simo_merge.training import JointConfig, train_joint

READS_MERGED_ONLY = ("head", "batch-norm")
"""Re-alignments that fit decoders to the merged features; no expert has to be run for them."""


@dataclass(frozen=True)
class Merged:
    """A merge, or a jointly trained model, with its row's name and what it took, the choice of its options included.

    seconds: of the merge. seen: images that it looked at; labelled: those of them whose labels it read. looked: share
    of the calibration images whose features, the experts' too, its choice was made by.
    """

    name: str
    model: MultiTaskModel
    seconds: float = math.nan
    seen: tuple[DenseDataset, ...] = ()
    labelled: tuple[DenseDataset, ...] = ()
    looked: float = 0.0


class Workbench:
    """What is measured with the experts of some tasks.

    Args:
        shelf: the experts.
        tasks: which of them; default: all.
        images: first calibration images that merges look at, to choose their options or to learn; default: all.
        validated: measure rows on the validation split too; `options["validation_delta"]` has delta there, so that a
            method can be chosen without the test split.
    """

    def __init__(
        self, shelf: Shelf, tasks: Sequence[str] | None = None, images: int | None = None, validated: bool = False
    ) -> None:
        self.shelf, self.images, self.validated = shelf, images, validated
        self.recipe, self.seed = shelf.recipe, shelf.seed
        self.tasks = tuple(tasks or shelf.tasks)
        self._merged: dict[str, Merged] = {}
        self._features: dict[str, tuple[Features, float]] = {}
        self._taps = RememberedTaps()

    @property
    def experts(self) -> list[SingleTaskModel]:
        return [self.shelf.expert(task) for task in self.tasks]

    # -- references -----------------------------------------------------------------------------------------------

    def experts_row(self) -> ResultRow:
        """The experts: delta 0, an encoder pass a task."""
        config, test = self.recipe.train_config(self.seed), self.shelf.test
        row = experts_row(
            self.experts, test, self._baseline(), self.seed, len(self.shelf.train), self.recipe.protocol,
            self.recipe.batch_size,
        )  # fmt: skip
        return replace(row, steps=config.decoder_steps + config.steps)

    def aligned_experts_row(self, align: Align, images: int | None = None) -> ResultRow:
        """Every expert re-aligned by itself: what the same images, labels and steps give where nothing is merged.

        Its labels are those of the training split and of the fit together, as in the rows of joint training.

        Args:
            align: the re-alignment.
            images: calibration images to fit to, as `aligned_row` takes them.
        """
        shelf, method, pictures = self.shelf, align.made(), self.calibration(images)
        alone: dict[str, MultiTaskModel] = {}
        fits: list[Mapping[str, Any]] = []
        for expert in self.experts:
            name = expert.task.name
            record = MergeRecord("experts")
            unmerged = MultiTaskModel(expert.encoder, {name: expert.decoder}, {name: expert.task}, merge=record)
            own = shelf.features(name).subset(slice(len(pictures)))
            features = CalibrationFeatures(own, {name: own})
            one = method.for_one_of(len(self.tasks))
            alone[name] = realign(
                unmerged, [expert], pictures, one, features, shelf.device, self.seed, precision=shelf.precision
            )
            assert alone[name].merge is not None
            fits.append(alone[name].merge.alignment)
        row = self._evaluated(_side_by_side(alone))
        share = len(pictures) / len(shelf.calibration)
        return replace(
            row,
            method=f"experts+{align.name}",
            images=len(pictures),
            labels=distinct(shelf.train, *_labelled(method, pictures)),
            trainable_parameters=sum(fit["trainable_parameters"] for fit in fits),
            fit_seconds=sum(fit["fit_seconds"] for fit in fits),
            capture_seconds=share * sum(shelf.capture_seconds[name] for name in self.tasks),
            steps=_steps(method),
            options=row.options | {"realignment": _said(method), "fitted_to": len(pictures)},
        )

    def base_row(self) -> ResultRow:
        """The pretrained encoder under the experts' decoders."""
        return replace(self._evaluated(merge(self.experts, TaskArithmetic(0.0), self.shelf.base)), method="base")

    def joint_row(self, row: Weighted, steps: int | None = None, images: int | None = None) -> ResultRow:
        """Joint training: on the training split, or on the first calibration images with their labels.

        Args:
            row: weighting and distillation.
            steps: of both stages together; default: those of the recipe.
            images: how many calibration images; None trains on the training split.
        """
        config = self.recipe.joint_config(row, self.seed, steps)
        data = self.shelf.open("train", self.tasks) if images is None else self.calibration(images)
        model = self._trained_jointly(row, config, data)
        found = self._evaluated(model)
        return replace(
            found,
            method=row.name,
            seed=self.seed,
            trainable_parameters=sum(p.numel() for p in model.parameters()),
            fit_seconds=float(model.provenance["train_seconds"]),
            steps=config.decoder_steps + config.steps,
            options=found.options | {"fitted_to": len(data)},
        )

    def aligned_joint_row(self, row: Weighted, align: Align, images: int | None = None) -> ResultRow:
        """The model of `joint_row` after a re-alignment; what that took is what the row says.

        Args:
            row: weighting and distillation.
            align: the re-alignment.
            images: calibration images to fit to, as `aligned_row` takes them.
        """
        config, data = self.recipe.joint_config(row, self.seed), self.shelf.open("train", self.tasks)
        model = self._trained_jointly(row, config, data)
        return self._aligned(Merged(row.name, model, seen=(data,), labelled=(data,)), align, images=images)

    def fine_tuned_row(self, spec: Merge, images: int, labels: bool) -> ResultRow:
        """All weights of the merge trained on the first calibration images: on their labels, or on what the experts
        predict for them. Source: the control of "A Broader Look at Model Merging" (2026)."""
        made, config = self.merged(spec), self.recipe.fine_tuning_config(self.seed)
        pictures, experts, shelf = self.calibration(images), self.experts, self.shelf
        began = time.perf_counter()
        taught = pictures if labels else predicted(pictures, experts, shelf.device, shelf.precision)
        model = fine_tuned(made.model, taught, config, shelf.device)
        seconds = time.perf_counter() - began
        row = self._evaluated(model)
        return replace(
            row,
            method=f"{made.name}+fine-tuning" + ("" if labels else "-to-experts"),
            images=distinct(*made.seen, pictures),
            labels=distinct(*made.labelled, *([pictures] if labels else ())),
            merge_seconds=made.seconds,
            fit_seconds=seconds,
            trainable_parameters=sum(p.numel() for p in model.parameters()),
            steps=config.steps,
            options=row.options | {"fitted_to": len(pictures)},
        )

    # -- merges ---------------------------------------------------------------------------------------------------

    def merged(self, spec: Merge) -> Merged:
        """The merge, its options chosen where the recipe says so; made once."""
        if spec.name not in self._merged:
            self._merged[spec.name] = self._made(spec)
        return self._merged[spec.name]

    def merged_row(self, spec: Merge) -> ResultRow:
        """The merge as it is."""
        made = self.merged(spec)
        row = self._evaluated(made.model)
        captured = self._expert_seconds(made.looked)
        return replace(row, method=made.name, merge_seconds=made.seconds, capture_seconds=captured)

    def aligned_row(self, spec: Merge, align: Align, steps: int | None = None, images: int | None = None) -> ResultRow:
        """The merge after a re-alignment.

        Args:
            spec: the merge.
            align: the re-alignment.
            steps: gradient steps, where they are not those of its options.
            images: calibration images to fit to, the first ones of the seed's order; None takes all.

        `capture_seconds` is what capturing took for all calibration images, in proportion to those that were used.
        """
        return self._aligned(self.merged(spec), align, steps, images)

    def _aligned(self, made: Merged, align: Align, steps: int | None = None, images: int | None = None) -> ResultRow:
        method, pictures = align.made(steps), self.calibration(images)
        reads_experts = align.method not in READS_MERGED_ONLY
        ours, seconds = self._captured(made)
        unread = replace(ours, encoder="")  # what has to be there, for a method that does not read it
        theirs = dict.fromkeys(self.tasks, unread)
        if reads_experts:
            theirs = {task: self.shelf.features(task) for task in self.tasks}
        features: CalibrationFeatures | None = CalibrationFeatures(ours, theirs).subset(slice(len(pictures)))
        model, captures, taken, said = made.model, 1, _steps(method), {"realignment": _said(method)}
        how: Any = {"device": self.shelf.device, "seed": self.seed, "precision": self.shelf.precision}
        if align.after is not None:
            before = align.after.made()
            model = realign(model, self.experts, pictures, before, features, **how)
            taken, said = taken + _steps(before), said | {"before": _said(before)}
            features, captures = None, 2  # what the changed encoder gives has to be captured again
        model = realign(model, self.experts, pictures, method, features, **how)
        row = self._evaluated(model)
        share = len(pictures) / len(self.shelf.calibration)
        of_experts = max(made.looked, share if reads_experts else 0.0)
        return replace(
            row,
            method=f"{made.name}+{align.name}",
            images=distinct(*made.seen, pictures),
            labels=distinct(*made.labelled, *_labelled(method, pictures)),
            merge_seconds=made.seconds,
            capture_seconds=captures * (self._expert_seconds(of_experts) + share * seconds),
            steps=taken,
            options=row.options | said | {"fitted_to": len(pictures)},
        )

    def calibration(self, images: int | None) -> DenseDataset:
        """The first calibration images of the seed's order."""
        whole = self.shelf.calibration
        return whole if images is None or images >= len(whole) else Part(whole, range(images))

    # -- shared ---------------------------------------------------------------------------------------------------

    def _trained_jointly(self, row: Weighted, config: JointConfig, data: DenseDataset) -> MultiTaskModel:
        experts, shelf = self.experts if row.distill else None, self.shelf
        taps = self.recipe.encoder.taps
        return train_joint(data, self.tasks, config, shelf.base, taps, device=shelf.device, experts=experts)

    def _baseline(self, use: str = "test") -> dict[str, dict[str, float]]:
        return {task: self.shelf.scores(task, use) for task in self.tasks}

    def _captured(self, made: Merged) -> tuple[Features, float]:
        if made.name not in self._features:
            self._features = {made.name: self.shelf.captured(made.model.encoder, f"features: {made.name}")}
        return self._features[made.name]

    def _made(self, spec: Merge) -> Merged:
        shelf, method = self.shelf, spec.made()
        pictures = self.calibration(self.images)
        seen: tuple[DenseDataset, ...] = ()
        labelled, looked = seen, 0.0
        if spec.choose and spec.by == "agreement":
            seen, looked = (pictures,), len(pictures) / len(shelf.calibration)
        elif spec.choose:
            seen = labelled = (shelf.validation,)
        experts, base, _ = self.experts, shelf.base, self._expert_seconds(looked)  # not what is timed
        began = time.perf_counter()
        if spec.choose:
            method = self._chosen(spec).method
        read = pictures if isinstance(method, DataMergeMethod) else None
        model = merge(experts, method, base, read, shelf.device, shelf.precision, self.seed)
        seconds = time.perf_counter() - began
        if read is not None:
            seen += (read,)
            labelled += _labelled(method, read)
        assert model.merge is not None
        model.merge = replace(model.merge, images=distinct(*seen), labels=distinct(*labelled))
        return Merged(spec.name, model, seconds, seen, labelled, looked)

    def _chosen(self, spec: Merge) -> MethodSelection:
        shelf, method, pictures = self.shelf, spec.made(), self.calibration(self.images)
        criterion: Criterion = ValidationDelta(shelf.validation, self.recipe.protocol)
        if spec.by == "agreement":
            features = {task: shelf.features(task).subset(slice(len(pictures))) for task in self.tasks}
            criterion = Agreement(pictures, spec.rank, features)
        read = pictures if isinstance(method, DataMergeMethod) else None
        return select(
            self.experts, method, spec.choose, criterion, shelf.base, read, shelf.device, shelf.precision, self.seed
        )

    def _expert_seconds(self, share: float) -> float:
        """Seconds that capturing the experts' features took, of this share of the calibration images."""
        if not share:
            return 0.0
        for task in self.tasks:
            self.shelf.features(task)
        return share * sum(self.shelf.capture_seconds[task] for task in self.tasks)

    def _evaluated(self, model: MultiTaskModel) -> ResultRow:
        model.to(self.shelf.device)
        with self._taps.serving(model.encoder):
            row = self._measured(model, "test")
            if self.validated:
                row = replace(
                    row, options=row.options | {"validation_delta": self._measured(model, "validation").delta_ratio}
                )
        model.to("cpu")
        return row

    def _measured(self, model: MultiTaskModel, use: Literal["test", "validation"]) -> ResultRow:
        recipe, shelf = self.recipe, self.shelf
        return evaluate(
            model,
            shelf.test if use == "test" else shelf.validation,
            baseline=self._baseline(use),
            precision=shelf.precision,
            seed=self.seed,
            protocol=recipe.protocol,
            batch_size=recipe.batch_size,
        )


def _side_by_side(models: Mapping[str, MultiTaskModel]) -> MultiTaskModel:
    """Models of one task each as one that runs them all, a pass a task."""
    return MultiTaskModel(
        next(iter(models.values())).encoder,
        {name: model.decoders[name] for name, model in models.items()},
        {name: model.tasks[name] for name, model in models.items()},
        {name: model.aligners[name] for name, model in models.items() if name in model.aligners},
        task_encoders={name: model.encoder_of(name) for name, model in models.items()},
    ).eval()


def _said(method: Realignment) -> dict[str, Any]:
    return {"method": method.label, **method.parameters()}


def _steps(method: Realignment) -> int:
    """Optimiser steps, as a row tells them."""
    return int(getattr(method, "steps", 0))


def _labelled(method: Realignment | MergeMethod, images: DenseDataset) -> tuple[DenseDataset, ...]:
    """The images whose labels the method reads, among those that it is given."""
    return (images,) if getattr(method, "needs_labels", False) else ()
