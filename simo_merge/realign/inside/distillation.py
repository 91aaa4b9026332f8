"""The merged encoder trained on, without labels, until each expert's features can be read from its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from simo_merge.data import Augmentation, DenseDataset, Sample
from simo_merge.data.loading import load, naming
from simo_merge.data.transforms.augmentation import RECIPES
from simo_merge.device import AUTO, PRECISIONS, autocast, resolve_precision
from simo_merge.errors import SimoError
from simo_merge.models import Aligner, Encoder, MultiTaskModel, Taps
from simo_merge.progress import progress
from simo_merge.realign.closed_form import error_scales
from simo_merge.realign.features import refuse_share
from simo_merge.realign.inside.shares import check_prefix, task_weights
from simo_merge.realign.linear import LinearSurgery
from simo_merge.realign.realignment import Calibration, Realignment, fitted_images, short
from simo_merge.realign.running import Tokens

Item = tuple[int, int | None]
"""Which image, and in which epoch, for its augmentation; None: as it is."""

_WARM_UP = 0.1  # of the steps


@dataclass(frozen=True)
class EncoderDistillation(Realignment):
    """All weights of the encoder, trained so that each expert's features are a linear map away from its own.

    No encoder can give the features of several experts at once; it can hold all that is in them. Each task and tap
    has a full affine map, which starts in closed form and is trained along. The loss is the squared difference between
    what the maps give and the experts' features, in units of the experts' deviations, mean over tokens, channels and
    taps, weighted over tasks. The maps are dropped in the end; an aligner is to follow, fitted to the new features.

    AdamW without weight decay on a one-cycle schedule over all epochs. A share of the images, the last, is held out:
    the epoch with the least error on them is kept, the merged encoder itself among them. The record tells the held-out
    error before the first epoch and after each, and which was kept. A single image changes nothing.

    epochs: over the images that are not held out. lr: peak rate of the encoder; maps have twice that. batch_size,
    precision: of a step; "auto" is the faster one on the device. augment: a recipe of `Augmentation.named`, with which
    every epoch sees other images and the experts are run along; "none" reads their captured features instead, in half
    of the time or less. held_out: share of the images. weights: of the tasks. prefix: how many patches a prefix token
    counts for; default: as many as there are.

    Source: several teachers distilled into one encoder behind maps of their own: arXiv 2007.06889, there with labels
    and from the base; ours starts from the merge and reads no labels.
    """

    name: ClassVar[str] = "encoder-distilled"
    changes_encoder: ClassVar[bool] = True
    epochs: int = 16
    lr: float = 1e-4
    batch_size: int = 8
    precision: str = AUTO
    augment: str = "default"
    held_out: float = 0.1
    weights: Mapping[str, float] | None = None
    prefix: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1 or self.batch_size < 1 or not 0 < self.lr < math.inf:
            raise SimoError(
                f"{self.name} takes epochs and batch_size of 1 or more and a positive lr, got {self.epochs}, "
                f"{self.batch_size}, {self.lr}"
            )
        if self.precision not in (AUTO, *PRECISIONS):
            raise SimoError(f"unknown precision {self.precision!r}; known: {', '.join((AUTO, *PRECISIONS))}")
        if self.augment not in (*RECIPES, "none"):
            raise SimoError(f"unknown augmentation {self.augment!r}; known: {', '.join((*RECIPES, 'none'))}")
        fitted_images(1, self.held_out)
        check_prefix(self.prefix)

    def check(self, model: MultiTaskModel, images: DenseDataset) -> None:
        """Refuse weights of unknown tasks."""
        task_weights(self.weights, list(model.tasks))

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Train, and keep the best epoch."""
        refuse_share(given.features)
        first = fitted_images(len(given.images), self.held_out)
        if first < 1:
            given.record["epochs_held_out"] = []
            return 0
        torch.manual_seed(given.seed)
        encoder = model.encoder.to(given.device).eval().requires_grad_(True)
        loss = self._loss(model, given, first)
        groups = [{"params": list(encoder.parameters()), "lr": self.lr}]
        groups += [{"params": list(maps.parameters()), "lr": 2 * self.lr} for maps in loss.maps.values()]
        errors, kept = self._train(encoder, groups, loss, given, first)
        given.record["epochs_held_out"] = [short(error) for error in errors]
        given.record["epochs_kept"] = kept
        return sum(p.numel() for p in encoder.parameters()) if kept else 0

    def _loss(self, model: MultiTaskModel, given: Calibration, first: int) -> _Loss:
        """The loss, with maps that are fitted in closed form to the images that are not held out."""
        seen = replace(given, captured=given.features.subset(slice(0, first)), record={})
        LinearSurgery(rank=None, stretch="none").fit(model, seen)
        maps = {task: cast(Aligner, model.aligners.pop(task)).to(given.device) for task in list(model.tasks)}
        experts = given.features.experts
        return _Loss(
            maps,
            {task: [scale.to(given.device) for scale in error_scales(experts[task])] for task in maps},
            task_weights(self.weights, list(maps)),
            float(given.features.merged.patches[0].shape[1]) if self.prefix is None else self.prefix,
        )

    def _train(
        self, encoder: Encoder, groups: list[dict[str, object]], loss: _Loss, given: Calibration, first: int
    ) -> tuple[list[float], int]:
        """The held-out error before the first epoch and after each, and how many epochs were kept."""
        precision = resolve_precision(self.precision, given.device)
        augmentation = None if self.augment == "none" else Augmentation.named(self.augment, {})
        teachers = _Teachers(given, list(loss.maps), precision, captured=augmentation is None)
        read = _Reader(given.images, augmentation, given.seed)
        held_out = self._batches([(index, None) for index in range(first, len(given.images))])
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [self.lr, *[2 * self.lr] * len(loss.maps)],
            total_steps=self.epochs * len(range(0, first, self.batch_size)) + 1,
            pct_start=_WARM_UP,
            cycle_momentum=False,
        )
        generator = torch.Generator().manual_seed(given.seed)

        def run(plan: Sequence[Sequence[Item]], trains: bool) -> float:
            total = 0.0
            for items, batch in zip(plan, load(read, plan), strict=True):
                images = batch.images.to(given.device)
                wanted = teachers(images, items)
                with torch.set_grad_enabled(trains):
                    with autocast(given.device, precision):
                        taps = encoder(images)
                    value = loss(taps, wanted)
                total += len(items) * value.item()
                if trains:
                    optimizer.zero_grad(set_to_none=True)
                    value.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    scheduler.step()
            return total / sum(len(items) for items in plan)

        errors, kept, best = [run(held_out, trains=False)], 0, _copy(encoder)
        for epoch in progress(range(1, self.epochs + 1), self.epochs, self.name):
            order = torch.randperm(first, generator=generator).tolist()
            run(self._batches([(index, epoch) for index in order]), trains=True)
            errors.append(run(held_out, trains=False))
            if errors[-1] < errors[kept]:
                kept, best = epoch, _copy(encoder)
        encoder.load_state_dict(best)
        return errors, kept

    def _batches(self, items: list[Item]) -> list[list[Item]]:
        return [items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]


@dataclass(frozen=True)
class _Reader:
    """Reads images without their labels; the augmentation is drawn from seed, epoch and index."""

    images: DenseDataset
    augmentation: Augmentation | None
    seed: int

    def __call__(self, item: Item) -> Sample:
        index, epoch = item
        with naming(self.images, index):
            sample = replace(self.images[index], targets={}, masks={})
            if self.augmentation is None or epoch is None:
                return sample
            return self.augmentation(sample, np.random.default_rng([self.seed, epoch, index]))


class _Teachers:
    """What the experts give for images: their captured features where an image is as it was captured, else a pass."""

    def __init__(self, given: Calibration, tasks: Sequence[str], precision: str, captured: bool) -> None:
        self.features, self.device, self.precision = given.features.experts, given.device, precision
        self.encoders = {
            task: None if captured else _frozen(given.experts[task].encoder, given.device) for task in tasks
        }

    def __call__(self, images: Tensor, items: Sequence[Item]) -> dict[str, Tokens]:
        """Patches and prefix tokens of every tap, for each task."""
        captured = torch.tensor([index for index, _ in items])
        found: dict[str, Tokens] = {}
        for task, encoder in self.encoders.items():
            if encoder is None or all(epoch is None for _, epoch in items):
                features = self.features[task]
                patches, prefix = ([p[captured] for p in tokens] for tokens in (features.patches, features.prefix))
                found[task] = [p.to(self.device).float() for p in patches], [p.to(self.device).float() for p in prefix]
            else:
                with torch.no_grad(), autocast(self.device, self.precision):
                    found[task] = _tokens(encoder(images))
        return found


@dataclass(frozen=True)
class _Loss:
    """How far an encoder's features, behind the maps, are from the experts'.

    maps: one aligner a task. scales: for each task and tap how large an error in each channel is taken to be, (C,).
    weights: of the tasks, 1 in sum. prefix: how many patches a prefix token counts for.
    """

    maps: Mapping[str, Aligner]
    scales: Mapping[str, list[Tensor]]
    weights: Mapping[str, float]
    prefix: float

    def __call__(self, taps: Taps, experts: Mapping[str, Tokens]) -> Tensor:
        """The loss of a batch, in float32; experts: what each gives for the same images."""
        patches, prefix = _tokens(taps)
        grid = (taps.maps[0].shape[-2], taps.maps[0].shape[-1])
        total: Tensor = patches[0].new_zeros(())
        for task, weight in self.weights.items():
            pairs = zip(*self.maps[task].tokens(patches, prefix, grid), *experts[task], self.scales[task], strict=True)
            for ours, ours_prefix, theirs, theirs_prefix, scale in pairs:
                error = ((ours - theirs) / scale).square().mean(dim=(0, 2)).sum()
                of_prefix = ((ours_prefix - theirs_prefix) / scale).square().mean(dim=(0, 2)).sum()
                tokens = ours.shape[1] + self.prefix * ours_prefix.shape[1]
                total = total + weight * (error + self.prefix * of_prefix) / (tokens * len(patches))
        return total


def _tokens(taps: Taps) -> Tokens:
    """Patches (B, h*w, C) and prefix tokens (B, P, C) of every tap, float32."""
    return [m.float().flatten(2).transpose(1, 2) for m in taps.maps], [p.float() for p in taps.prefix]


def _frozen(encoder: Encoder, device: torch.device) -> Encoder:
    return copy.deepcopy(encoder).to(device).eval().requires_grad_(False)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
