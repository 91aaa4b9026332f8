"""The merged encoder trained on, without labels, until each expert's features can be read from its own."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from simo_merge.data import Augmentation, DenseDataset
from simo_merge.data.loading import load
from simo_merge.data.transforms.augmentation import RECIPES
from simo_merge.device import AUTO, PRECISIONS, autocast, resolve_precision
from simo_merge.distributed import by_main
from simo_merge.errors import SimoError
from simo_merge.models import Aligner, Encoder, MultiTaskModel, Taps
from simo_merge.progress import progress
from simo_merge.realign.closed_form import error_scales
from simo_merge.realign.features import refuse_share
from simo_merge.realign.inside.shares import check_prefix, task_weights
from simo_merge.realign.inside.tap_errors import token_error
from simo_merge.realign.inside.teachers import AugmentedReader, Item, Teachers
from simo_merge.realign.linear import LinearSurgery
from simo_merge.realign.realignment import Calibration, Realignment, fitted_images, short
from simo_merge.realign.running import Tokens, tokens_of

_LOG = logging.getLogger(__name__)

_WARM_UP = 0.1  # of the steps
_LOOKS = 16  # at the held-out error, evenly over the steps


@dataclass(frozen=True)
class EncoderDistillation(Realignment):
    """All weights of the encoder, trained so that each expert's features are a linear map away from its own.

    No encoder can give the features of several experts at once; it can hold all that is in them. Each task and tap
    has a full affine map, which starts in closed form and is trained along. The loss is the squared difference between
    what the maps give and the experts' features, in units of the experts' deviations, mean over tokens, channels and
    taps, weighted over tasks. The maps are dropped in the end; an aligner is to follow, fitted to the new features.

    AdamW without weight decay on a one-cycle schedule over all steps. A share of the images, the last, is held out; the
    error on them is looked at sixteen times (of fewer steps after each), and the weights where it was least are kept,
    those of the merged encoder among them. The record tells the held-out error at each look, the first before all
    steps, and how many steps were kept. A single image changes nothing. Where a launcher started several processes, the
    main one trains.

    steps: of a batch each. lr: peak rate of the encoder; maps have twice that. batch_size, precision: of a step; "auto"
    is the faster one on the device. augment: a recipe of `Augmentation.named`, with which every epoch sees other images
    and the experts are run along; None reads the experts' captured features instead, and runs none. held_out: share of
    the images. weights: of the tasks. prefix: how many patches a prefix token counts for; None: all patches of its
    image together. workers: processes that read the images, for a GPU that waits for them; the result is the same.

    Source: several teachers distilled into one encoder behind maps of their own: arXiv 2007.06889, there with labels
    and from the base; ours starts from the merge and reads no labels.
    """

    name: ClassVar[str] = "encoder-distilled"
    changes_encoder: ClassVar[bool] = True
    steps: int = 2000
    lr: float = 2e-4
    batch_size: int = 16
    precision: str = AUTO
    augment: str | None = "default"
    held_out: float = 0.1
    weights: Mapping[str, float] | None = None
    prefix: float | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.batch_size < 1 or self.workers < 0 or not 0 < self.lr < math.inf:
            raise SimoError(
                f"{self.name} takes steps and batch_size of 1 or more, a positive lr and 0 workers (a thread reads) or "
                f"more, got steps {self.steps}, batch_size {self.batch_size}, lr {self.lr}, workers {self.workers}"
            )
        if self.precision not in (AUTO, *PRECISIONS):
            raise SimoError(f"unknown precision {self.precision!r}; known: {', '.join((AUTO, *PRECISIONS))}")
        if self.augment is not None and self.augment not in RECIPES:
            raise SimoError(f"unknown augmentation {self.augment!r}; known: {', '.join(RECIPES)}, or none")
        fitted_images(1, self.held_out)
        check_prefix(self.prefix)

    def check(self, model: MultiTaskModel, images: DenseDataset) -> None:
        """Refuse weights of unknown tasks."""
        task_weights(self.weights, list(model.tasks))

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Train, and keep the best look."""
        refuse_share(given.features)
        first = fitted_images(len(given.images), self.held_out)
        if first < 1:
            given.record["errors_held_out"] = []
            _LOG.warning("%s: of one image none can be held out, so the encoder stays as it was", self.name)
            return 0
        encoder = model.encoder.to(given.device).eval().requires_grad_(True)
        parameters = _read_for_taps(encoder)

        def trained() -> tuple[list[float], int, dict[str, Tensor]]:
            loss = self._loss(model, given, first)
            errors, kept, best = self._train(encoder, parameters, loss, given, first)
            return errors, kept, {name: value.cpu() for name, value in best.items()}

        errors, kept, best = by_main(trained)
        encoder.load_state_dict(best)
        if not kept:
            _LOG.warning(
                "%s: at no step was it nearer to the experts on held-out images (%s), so the encoder stays as it was; "
                "try a lower lr, more steps or more images",
                self.name,
                " -> ".join(f"{error:.4g}" for error in errors),
            )
        given.record["errors_held_out"] = [short(error) for error in errors if math.isfinite(error)]
        given.record["steps_kept"] = kept
        return sum(parameter.numel() for parameter in parameters) if kept else 0

    def _loss(self, model: MultiTaskModel, given: Calibration, first: int) -> MappedError:
        """The loss, with maps that are fitted in closed form to the images that are not held out."""
        seen = replace(given, captured=given.features.subset(slice(0, first)), record={})
        LinearSurgery(rank=None, stretch="none").fit(model, seen)
        maps = {task: cast(Aligner, model.aligners.pop(task)).to(given.device) for task in list(model.tasks)}
        weights = {task: w for task, w in task_weights(self.weights, list(maps)).items() if w > 0}
        return MappedError(
            {task: maps[task] for task in weights},
            {task: [s.to(given.device) for s in error_scales(given.features.experts[task])] for task in weights},
            weights,
            float(given.features.merged.patches[0].shape[1]) if self.prefix is None else self.prefix,
        )

    def _train(
        self, encoder: Encoder, parameters: list[nn.Parameter], loss: MappedError, given: Calibration, first: int
    ) -> tuple[list[float], int, dict[str, Tensor]]:
        """The held-out error before the first step and at each look, how many steps were kept, and the encoder then.

        It ends at once where an error is no number.
        """
        precision = resolve_precision(self.precision, given.device)
        augmentation = None if self.augment is None else Augmentation.named(self.augment, {})
        teachers = Teachers(given, list(loss.weights), precision, runs=augmentation is not None)
        read = AugmentedReader(given.images, augmentation, given.seed)
        held_out = self._batches([(index, None) for index in range(first, len(given.images))])
        groups: list[dict[str, Any]] = [{"params": parameters, "lr": self.lr}]
        groups += [{"params": list(maps.parameters()), "lr": 2 * self.lr} for maps in loss.maps.values()]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        total = self.steps + 1  # the last rate is never used
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in groups],
            total_steps=total,
            pct_start=max(_WARM_UP, 2 / total),  # one step at least: it divides by zero at none
            cycle_momentum=False,
        )

        def run(plan: Sequence[Sequence[Item]], trains: bool) -> float:
            summed = torch.zeros((), device=given.device)
            for items, batch in zip(plan, load(read, plan, self.workers if trains else 0), strict=True):
                images = batch.images.to(given.device)
                wanted = teachers(images, items)
                with torch.set_grad_enabled(trains):
                    with autocast(given.device, precision):
                        taps = encoder(images)
                    value = loss(taps, wanted)
                summed += len(items) * value.detach()
                if trains:
                    optimizer.zero_grad(set_to_none=True)
                    value.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    scheduler.step()
            return float(summed) / sum(len(items) for items in plan)

        plan = self._plan(first, given.seed)
        looks = sorted({math.ceil(len(plan) * look / _LOOKS) for look in range(1, _LOOKS + 1)})
        errors, kept, best, done = [run(held_out, trains=False)], 0, _copy(encoder), 0
        for steps in progress(looks, len(looks), self.name, status=lambda: f"held-out error {errors[-1]:.4g}"):
            run(plan[done:steps], trains=True)
            done = steps
            errors.append(run(held_out, trains=False))
            if not math.isfinite(errors[-1]):
                break
            if errors[-1] < min(errors[:-1]):
                kept, best = steps, _copy(encoder)
        return errors, kept, best

    def _plan(self, first: int, seed: int) -> list[list[Item]]:
        """The batches of all steps; every epoch has the images that are not held out in an order of its own."""
        generator = torch.Generator().manual_seed(seed)
        plan: list[list[Item]] = []
        epoch = 0
        while len(plan) < self.steps:
            epoch += 1
            plan += self._batches([(index, epoch) for index in torch.randperm(first, generator=generator).tolist()])
        return plan[: self.steps]

    def _batches(self, items: list[Item]) -> list[list[Item]]:
        return [items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]


@dataclass(frozen=True)
class MappedError:
    """How far an encoder's features, behind the maps, are from the experts'.

    maps: one aligner a task. scales: for each task and tap how large an error in each channel is taken to be, (C,).
    weights: of the tasks, 1 in sum. prefix: how many patches a prefix token counts for.
    """

    maps: Mapping[str, Aligner]
    scales: Mapping[str, list[Tensor]]
    weights: Mapping[str, float]
    prefix: float

    def __call__(self, taps: Taps, experts: Mapping[str, Tokens]) -> Tensor:
        """The error of a batch, mean over its images, in float32; experts: what each gives for the same images."""
        patches, prefix = tokens_of(taps)
        grid = (taps.maps[0].shape[-2], taps.maps[0].shape[-1])
        total: Tensor = patches[0].new_zeros(())
        for task, weight in self.weights.items():
            pairs = zip(*self.maps[task].tokens(patches, prefix, grid), *experts[task], self.scales[task], strict=True)
            for ours, ours_prefix, theirs, theirs_prefix, scale in pairs:
                tokens = torch.cat([ours_prefix, ours], dim=1)
                total = total + weight * token_error(tokens, theirs, theirs_prefix, scale, self.prefix)
        return total / (len(patches) * len(patches[0]))


def _read_for_taps(encoder: Encoder) -> list[nn.Parameter]:
    """The parameters that the taps depend on: not those of blocks behind the last tap, nor of the norm behind all."""

    def behind(name: str) -> bool:
        return name.startswith("vit.norm.") or (
            name.startswith("vit.blocks.") and int(name.split(".")[2]) > encoder.taps[-1]
        )

    return [parameter for name, parameter in encoder.named_parameters() if not behind(name)]


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
