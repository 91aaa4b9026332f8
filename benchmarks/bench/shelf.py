"""One seed's experts with all that rows share: features, scores, the base; each computed when it is asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property

import torch

from bench.parts import drawn, open_part
from bench.recipe import Recipe
from simo_merge.data import DenseDataset
from simo_merge.device import resolve_device, resolve_precision
from simo_merge.evaluation import expert_scores
from simo_merge.models import Encoder, SingleTaskModel
from simo_merge.realign import Features, capture
from simo_merge.scoring import Scores
from simo_merge.training import train_expert
from simo_merge.weights import Base, fitting_size, load_base


class Shelf:
    """Experts of a recipe and a seed, by task.

    Args:
        recipe: what they are.
        spec: the data set, as `--data` takes it.
        seed: of training and fitting, and of the order in which calibration images are taken.
        tasks: those that data sets are opened with; all that will be asked for.
        device: where to compute; default: the GPU if there is one.
    """

    def __init__(
        self, recipe: Recipe, spec: str, seed: int, tasks: Sequence[str], device: str | torch.device | None = None
    ) -> None:
        self.recipe, self.spec, self.seed, self.tasks = recipe, spec, seed, tuple(tasks)
        self.device = resolve_device(device)
        self.precision = resolve_precision(recipe.precision, self.device)
        self._experts: dict[str, SingleTaskModel] = {}
        self._scores: dict[str, Scores] = {"test": {}, "validation": {}}
        self._features: dict[str, Features] = {}
        self.capture_seconds: dict[str, float] = {}

    def open(self, use: str, tasks: Sequence[str]) -> DenseDataset:
        """The images that the recipe has for `train`, `calibration`, `validation` or `test`."""
        data = self.recipe.data
        return open_part(self.spec, data.options, getattr(data, use), tasks, data.limit)

    @cached_property
    def base(self) -> Base:
        encoder = self.recipe.encoder
        size = self.test[0].size
        return load_base(encoder.name, encoder.weights, fitting_size(encoder.name, *size))

    @cached_property
    def calibration(self) -> DenseDataset:
        """In an order of the seed (`parts.drawn`)."""
        return drawn(self.open("calibration", self.tasks), self.seed)

    @cached_property
    def validation(self) -> DenseDataset:
        return self.open("validation", self.tasks)

    @cached_property
    def test(self) -> DenseDataset:
        return self.open("test", self.tasks)

    @cached_property
    def train(self) -> DenseDataset:
        return self.open("train", self.tasks)

    def expert(self, task: str) -> SingleTaskModel:
        """The task's expert, trained now or found in the cache."""
        if task not in self._experts:
            data, config = self.open("train", (task,)), self.recipe.train_config(self.seed)
            taps = self.recipe.encoder.taps
            self._experts[task] = train_expert(data, task, config, self.base, taps, device=self.device)
        return self._experts[task]

    def scores(self, task: str, use: str = "test") -> dict[str, float]:
        """Its metrics on the `test` or `validation` split: the baseline of delta there."""
        found = self._scores[use]
        if task not in found:
            expert, recipe = self.expert(task).to(self.device), self.recipe
            images = self.test if use == "test" else self.validation
            found |= expert_scores([expert], images, self.precision, recipe.protocol, recipe.batch_size)
            expert.to("cpu")
        return found[task]

    def features(self, task: str) -> Features:
        """Its features of the calibration images."""
        if task not in self._features:
            label = f"features: {task}"
            self._features[task], self.capture_seconds[task] = self.captured(self.expert(task).encoder, label)
        return self._features[task]

    def captured(self, encoder: Encoder, label: str) -> tuple[Features, float]:
        """Features of the calibration images, and the seconds that they took."""
        began = time.perf_counter()
        found = capture(encoder.to(self.device), self.calibration, precision=self.precision, label=label)
        encoder.to("cpu")
        return found, time.perf_counter() - began
