"""Fine-tuning in two stages: one task, or several that share an encoder."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from simo_merge.data import Augmentation, Batch, DenseDataset
from simo_merge.distributed import by_main, is_main, refuse_differences, world_size
from simo_merge.errors import SimoError
from simo_merge.progress import progress
from simo_merge.scoring import score
from simo_merge.training.batches import training_batches
from simo_merge.training.config import TrainConfig
from simo_merge.training.distillation import Distillation
from simo_merge.training.forward import Trained, decoders_of
from simo_merge.training.log import RunLog
from simo_merge.training.objective import Objective, add_up_gradients
from simo_merge.training.shared_step import shared_step
from simo_merge.training.stages import Stage, stage_optimizer, stages_of
from simo_merge.training.state import (
    RunState,
    load_state,
    restore_model,
    restore_optimizer,
    save_state,
    with_prefix,
    without_prefix,
)
from simo_merge.training.weighting import Equal, Weighting
from simo_merge.weights import fingerprint

_LOG = logging.getLogger(__name__)
_SECOND_BATCH = 2**32  # added to the seed: the second batches are drawn in an order of their own


class Trainer:
    """Trains an expert, or a multi-task model jointly; a killed run goes on where its last state was written.

    In the first stage the encoder is frozen and the decoders have nothing in common: each is trained as it would be
    alone. Weighting and distillation belong to the second.

    Processes that a launcher started share every batch; they hold the same weights, and the main one writes. A killed
    run may go on with another number of them.

    Args:
        model: encoder with base weights and a fresh decoder a task, on its device.
        dataset: training images with labels for all its tasks.
        config: options.
        folder: where the run keeps its state and `metrics.jsonl`.
        validation: scored at the end of each stage, if given; it decides nothing.
        workers: loader processes.
        save_every: seconds between states; one is also written at the end of each stage.
        weighting: how the tasks' losses or gradients are weighed; default: equally.
        distillation: experts whose features the encoder is to keep to.

    Raises:
        SimoError: a library that the weighting needs is missing, or a batch size that the processes cannot share.
    """

    def __init__(
        self,
        model: Trained,
        dataset: DenseDataset,
        config: TrainConfig,
        folder: Path,
        validation: DenseDataset | None = None,
        workers: int = 0,
        save_every: float = 60.0,
        weighting: Weighting | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.config = config
        self.folder = folder
        self.validation = validation
        self.workers = workers
        self.save_every = save_every
        self.name = " + ".join(model.tasks)
        self.log = RunLog(folder)
        self.weighting = weighting or Equal()
        self.weighting_state = self.weighting.initial(len(model.tasks))
        self.distillation = distillation
        self.objective = Objective(model, config, distillation)
        self.seconds = 0.0
        self.loss = math.nan
        self._told: dict[str, Any] = {}

    def run(self) -> None:
        """Train both stages, or what a killed run has left of them.

        Raises:
            SimoError: loss or gradient became NaN or infinite, or the processes did not begin with the same weights.
        """
        if world_size() > 1:
            refuse_differences(f"the model of {self.name}", fingerprint(self.model.state_dict()))
        with self.objective.running():
            self._run()

    def _run(self) -> None:
        resumed = by_main(self._begin)
        done = 0
        if resumed is not None:
            self._restore(resumed)
            done, self.seconds = resumed.step, resumed.seconds
            _LOG.info("%s: going on after step %d", self.name, done)
        first = 0
        for stage in stages_of(self.config):
            last = first + stage.steps
            if done < last:
                self._run_stage(stage, first, done, resumed if done > first else None)
                done = last
            first = last

    def _begin(self) -> RunState | None:
        """Make the run's folder, or read the state that is in it and forget what was logged after that."""
        self.folder.mkdir(parents=True, exist_ok=True)
        resumed = load_state(self.folder)
        self.log.drop_after(0 if resumed is None else resumed.step)
        return resumed

    def _run_stage(self, stage: Stage, first: int, done: int, resumed: RunState | None) -> None:
        """Train steps `done` + 1 to the stage's last; `first` steps were made before the stage."""
        last = first + stage.steps
        optimizer, scheduler = stage_optimizer(stage, self.model, self.config, self.distillation)
        if resumed is not None:
            restore_optimizer(resumed.tensors, optimizer)
            scheduler.load_state_dict(resumed.scheduler)
            for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = rate  # load_state_dict leaves the optimiser at the rate of step 0
        pairs = zip(self._batches(last, done), self._second_batches(stage, last, done), strict=False)
        label = f"{self.name}: {stage.name}"
        steps = progress(pairs, stage.steps, label, done - first, lambda: f"loss {self.loss:.3f}")
        saved = before = time.monotonic()
        for step, (batch, other) in enumerate(steps, start=done + 1):
            rates = scheduler.get_last_lr()
            self._step(stage, batch, optimizer, step, step - first - 1, other)
            scheduler.step()
            now = time.monotonic()
            self.seconds += now - before  # loading included: that is what training takes
            before = now
            entry = {"step": step, "stage": stage.name, "loss": self.loss, "lr": rates, "seconds": self.seconds}
            self._log(entry | self._told)
            if now - saved >= self.save_every and step < last:
                self._save(step, optimizer, scheduler)
                saved = now
        self._validate(stage, last)
        self._save(last, optimizer, scheduler)

    def _batches(self, last: int, done: int, seed: int = 0) -> Iterator[Batch]:
        config = self.config
        augment = None if config.augment == "none" else Augmentation.named(config.augment, self.dataset.tasks)
        rows = None if self.objective.cut.whole else self.objective.cut.rows
        seed += config.seed
        return training_batches(self.dataset, augment, config.batch_size, last, seed, done, self.workers, rows)

    def _second_batches(self, stage: Stage, last: int, done: int) -> Iterator[Batch | None]:
        if stage.trains_encoder and self.weighting.needs_second_batch:
            return self._batches(last, done, _SECOND_BATCH)
        return repeat(None)

    def _validate(self, stage: Stage, step: int) -> None:
        if self.validation is None:
            return
        scores = score(self.model, self.validation, precision=self.config.precision)
        single = len(scores) == 1
        self._log({"step": step, "stage": stage.name, "validation": scores[self.name] if single else scores})
        if not is_main():
            return
        for task, found in scores.items():
            told = ", ".join(f"{metric} {value:.4g}" for metric, value in found.items())
            _LOG.info("%s: after stage %r, on %s: %s", task, stage.name, self.validation.split, told)

    def _log(self, entry: dict[str, Any]) -> None:
        if is_main():
            self.log.add(entry)

    def _save(self, step: int, optimizer: torch.optim.Optimizer, scheduler: OneCycleLR) -> None:
        if not is_main():
            return
        extra = with_prefix("weighting", self.weighting_state)
        if self.distillation is not None:
            extra |= with_prefix("adapters", self.distillation.adapters.state_dict())
        save_state(self.folder, step, self.seconds, self.model, optimizer, _plain(scheduler.state_dict()), extra)

    def _restore(self, resumed: RunState) -> None:
        restore_model(resumed.tensors, self.model)
        self.weighting_state |= without_prefix("weighting", resumed.tensors)
        if self.distillation is not None:
            self.distillation.adapters.load_state_dict(without_prefix("adapters", resumed.tensors))

    def _step(
        self,
        stage: Stage,
        batch: Batch,
        optimizer: torch.optim.Optimizer,
        step: int,
        number: int = 0,
        other: Batch | None = None,
    ) -> None:
        """One step: `step` counts from the run's beginning, from 1; `number` within the stage, from 0."""
        optimizer.zero_grad(set_to_none=True)
        parts = self.objective.parts(batch)
        weights = torch.ones(len(self.model.tasks))
        shared = None
        plain = isinstance(self.weighting, Equal) and len(parts) > 1  # no weight waits for the other parts' losses
        if stage.trains_encoder and not plain:
            made = self.objective.measure(parts, stage.trains_encoder, step)
            epoch_steps = -(-len(self.dataset) // self.config.batch_size)
            shared = shared_step(self.objective, parts, other, made, optimizer, step, number, epoch_steps)
            weights = self.weighting.backward(shared, self.weighting_state)
        else:
            made = self.objective.descend(parts, stage.trains_encoder, step)
        losses = made.losses.detach()
        self.loss = float(losses.sum())
        add_up_gradients(optimizer)
        self._refuse_non_finite(self._clip(stage), step)
        optimizer.step()
        if shared is not None:
            self.weighting.after(shared, self.weighting_state)
        self._told = self._per_task(losses, weights, made.extra)

    def _clip(self, stage: Stage) -> float:
        """Clip gradient norms, of each decoder by itself while they share nothing; their norm before."""
        parts = [list(decoder.parameters()) for decoder in decoders_of(self.model).values()]
        if stage.trains_encoder:
            parts = [[p for part in parts for p in part] + list(self.model.encoder.parameters())]
        norms = [nn.utils.clip_grad_norm_(part, self.config.clip) for part in parts]
        return float(torch.stack(norms).norm())

    def _refuse_non_finite(self, norm: float, step: int) -> None:
        if not (math.isfinite(self.loss) and math.isfinite(norm)):
            raise SimoError(
                f"the loss of {self.name} became {self.loss} at step {step}, its gradient {norm}; lower "
                "encoder_lr and decoder_lr, or train with precision float32"
            )

    def _per_task(self, losses: Tensor, weights: Tensor, extra: Tensor | None) -> dict[str, Any]:
        """What the log says of joint training beside the sum of the losses."""
        told: dict[str, Any] = {}
        if len(losses) > 1:
            told["losses"] = dict(zip(self.model.tasks, losses.tolist(), strict=True))
            told["weights"] = dict(zip(self.model.tasks, weights.tolist(), strict=True))
        if extra is not None:
            told["distillation"] = float(extra.detach())
        return told


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state.items() if isinstance(v, int | float | str | list | bool)}
