"""Single-task fine-tuning in two stages."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from simo_merge.data import Augmentation, Batch, DenseDataset
from simo_merge.device import autocast
from simo_merge.errors import SimoError
from simo_merge.models import SingleTaskModel
from simo_merge.progress import progress
from simo_merge.scoring import score
from simo_merge.training.batches import training_batches
from simo_merge.training.config import TrainConfig
from simo_merge.training.state import RunState, load_state, restore_model, restore_optimizer, save_state

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One stage: its name, its steps, and whether the encoder is trained."""

    name: str
    steps: int
    trains_encoder: bool


class Trainer:
    """Trains one expert; a killed run goes on where its last state was written.

    Args:
        model: encoder with base weights and a fresh decoder, on its device.
        dataset: labelled training images.
        config: options.
        folder: where the run keeps its state and `metrics.jsonl`.
        validation: scored at the end of each stage, if given; it decides nothing.
        workers: loader processes.
        save_every: seconds between states; one is also written at the end of each stage.
    """

    def __init__(
        self,
        model: SingleTaskModel,
        dataset: DenseDataset,
        config: TrainConfig,
        folder: Path,
        validation: DenseDataset | None = None,
        workers: int = 0,
        save_every: float = 60.0,
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.config = config
        self.folder = folder
        self.validation = validation
        self.workers = workers
        self.save_every = save_every
        self.device = next(model.parameters()).device
        self.seconds = 0.0
        self.loss = math.nan

    def run(self) -> None:
        """Train both stages, or what a killed run has left of them.

        Raises:
            SimoError: loss or gradient became NaN or infinite.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        stages = [
            Stage("decoder", self.config.decoder_steps, trains_encoder=False),
            Stage("encoder and decoder", self.config.steps, trains_encoder=True),
        ]
        resumed = load_state(self.folder)
        done = 0
        if resumed is not None:
            restore_model(resumed.tensors, self.model)
            done, self.seconds = resumed.step, resumed.seconds
            _LOG.info("%s: going on after step %d", self.model.task.name, done)
        self._drop_log_after(done)
        first = 0
        for stage in stages:
            last = first + stage.steps
            if done < last:
                self._run_stage(stage, first, done, resumed if done > first else None)
                done = last
            first = last

    def _run_stage(self, stage: Stage, first: int, done: int, resumed: RunState | None) -> None:
        """Train steps `done` + 1 to the stage's last; `first` steps were made before the stage."""
        config, last = self.config, first + stage.steps
        optimizer, scheduler = self._optimizer(stage)
        if resumed is not None:
            restore_optimizer(resumed.tensors, optimizer)
            scheduler.load_state_dict(resumed.scheduler)
            for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = rate  # load_state_dict leaves the optimiser at the rate of step 0
        loader = training_batches(
            self.dataset,
            None if config.augment == "none" else Augmentation.named(config.augment, self.dataset.tasks),
            config.batch_size,
            last,
            config.seed,
            done,
            self.workers,
        )
        label = f"{self.model.task.name}: {stage.name}"
        steps = progress(loader, stage.steps, label, done - first, lambda: f"loss {self.loss:.3f}")
        saved = before = time.monotonic()
        for step, batch in enumerate(steps, start=done + 1):
            rates = scheduler.get_last_lr()
            self._step(stage, batch, optimizer, step)
            scheduler.step()
            now = time.monotonic()
            self.seconds += now - before  # loading included: that is what training takes
            before = now
            self._log({"step": step, "stage": stage.name, "loss": self.loss, "lr": rates, "seconds": self.seconds})
            if now - saved >= self.save_every and step < last:
                self._save(step, optimizer, scheduler)
                saved = now
        if self.validation is not None:
            scores = score(self.model, self.validation, precision=config.precision)[self.model.task.name]
            self._log({"step": last, "stage": stage.name, "validation": scores})
            told = ", ".join(f"{metric} {value:.4g}" for metric, value in scores.items())
            _LOG.info("%s: after stage %r, on %s: %s", self.model.task.name, stage.name, self.validation.split, told)
        self._save(last, optimizer, scheduler)

    def _save(self, step: int, optimizer: torch.optim.Optimizer, scheduler: OneCycleLR) -> None:
        save_state(self.folder, step, self.seconds, self.model, optimizer, _plain(scheduler.state_dict()))

    def _optimizer(self, stage: Stage) -> tuple[torch.optim.Optimizer, OneCycleLR]:
        groups: list[dict[str, Any]] = [{"params": list(self.model.decoder.parameters()), "lr": self.config.decoder_lr}]
        if stage.trains_encoder:
            groups.append({"params": list(self.model.encoder.parameters()), "lr": self.config.encoder_lr})
        total = stage.steps + 1  # the last call to step() sets a rate that is never used
        optimizer = torch.optim.AdamW(groups, weight_decay=self.config.weight_decay)
        scheduler = OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in groups],
            total_steps=total,
            pct_start=max(self.config.warmup, 2 / total),  # one step at least: OneCycleLR divides by zero at none
            cycle_momentum=False,
        )
        return optimizer, scheduler

    def _step(self, stage: Stage, batch: Batch, optimizer: torch.optim.Optimizer, step: int) -> None:
        torch.manual_seed(self.config.seed * 1_000_003 + step)  # dropout depends on the step, not on what ran before
        model, task = self.model, self.model.task
        batch = batch.to(self.device)
        model.train()
        model.encoder.train(stage.trains_encoder)
        size = (batch.images.shape[-2], batch.images.shape[-1])
        with autocast(self.device, self.config.precision):
            with torch.set_grad_enabled(stage.trains_encoder):
                taps = model.encoder(batch.images)
            prediction = model.decode(taps, size)
        loss = task.loss(prediction, batch.targets[task.name], batch.masks[task.name])
        self.loss = float(loss.detach())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], self.config.clip)
        if not (math.isfinite(self.loss) and math.isfinite(norm)):
            raise SimoError(
                f"the loss of {task.name} became {self.loss} at step {step}, its gradient {float(norm)}; lower "
                "encoder_lr and decoder_lr, or train with precision float32"
            )
        optimizer.step()

    def _log(self, entry: dict[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _drop_log_after(self, step: int) -> None:
        """Forget lines of steps that the killed run made after its last state; they are made again."""
        file = self.folder / "metrics.jsonl"
        if file.is_file():
            lines = [line for line in file.read_text().splitlines() if _step_of(line) <= step]
            file.write_text("".join(line + "\n" for line in lines))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return math.inf  # a line cut off by the kill


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state.items() if isinstance(v, int | float | str | list | bool)}
