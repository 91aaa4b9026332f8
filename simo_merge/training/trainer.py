"""Single-task fine-tuning in two stages."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simo_merge.data import Augmentation, Batch, DenseDataset
from simo_merge.device import autocast
from simo_merge.errors import SimoError
from simo_merge.models import SingleTaskModel
from simo_merge.progress import progress
from simo_merge.scoring import score
from simo_merge.training.batches import training_batches
from simo_merge.training.config import TrainConfig
from simo_merge.training.state import load_state, restore, save_state

_LOG = logging.getLogger(__name__)
SAVE_EVERY = 60.0  # seconds between states of an unfinished run


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
    """

    def __init__(
        self,
        model: SingleTaskModel,
        dataset: DenseDataset,
        config: TrainConfig,
        folder: Path,
        validation: DenseDataset | None = None,
        workers: int = 0,
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.config = config
        self.folder = folder
        self.validation = validation
        self.workers = workers
        self.device = next(model.parameters()).device
        self.seconds = 0.0
        self.loss = math.nan

    def run(self, after_step: Callable[[int], None] | None = None) -> None:
        """Train both stages; `after_step` is called with the number of steps done so far.

        Raises:
            SimoError: the loss became NaN or infinite.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        stages = [
            Stage("decoder", self.config.decoder_steps, trains_encoder=False),
            Stage("encoder and decoder", self.config.steps, trains_encoder=True),
        ]
        resumed = load_state(self.folder)
        done = int(resumed[1]["step"]) if resumed else 0
        if resumed:
            self.seconds = float(resumed[1]["seconds"])
            _LOG.info("%s: going on after step %d", self.model.task.name, done)
            self._drop_log_after(done)
        first = 0
        for stage in stages:
            last = first + stage.steps
            if stage.steps and done < last:
                self._run_stage(stage, first, done, resumed, after_step)
                resumed, done = None, last
            first = last

    def _run_stage(
        self,
        stage: Stage,
        first: int,
        done: int,
        resumed: tuple[dict[str, Any], dict[str, Any]] | None,
        after_step: Callable[[int], None] | None,
    ) -> None:
        config, total = self.config, self.config.decoder_steps + self.config.steps
        optimizer, scheduler = self._optimizer(stage)
        if resumed:
            restore(resumed[0], self.model, optimizer if done > first else None)
            if done > first:
                scheduler.load_state_dict(resumed[1]["scheduler"])
        loader = training_batches(
            self.dataset,
            Augmentation(self.dataset.tasks) if config.augment else None,
            config.batch_size,
            total if stage.trains_encoder else first + stage.steps,
            config.seed,
            done,
            self.workers,
        )
        label = f"{self.model.task.name}: {stage.name}"
        steps = progress(loader, stage.steps, label, done - first, lambda: f"loss {self.loss:.3f}")
        saved = time.monotonic()
        for step, batch in enumerate(steps, start=done + 1):
            began = time.monotonic()
            self._step(stage, batch, optimizer, step)
            scheduler.step()
            now = time.monotonic()
            self.seconds += now - began
            rate = scheduler.get_last_lr()
            self._log({"step": step, "stage": stage.name, "loss": self.loss, "lr": rate, "seconds": self.seconds})
            if now - saved > SAVE_EVERY or step == first + stage.steps:
                meta = {"seconds": self.seconds, "scheduler": _plain(scheduler.state_dict())}
                save_state(self.folder, step, self.model, optimizer, meta)
                saved = now
            if after_step is not None:
                after_step(step)
        if self.validation is not None:
            scores = score(self.model, self.validation, precision=config.precision)[self.model.task.name]
            self._log({"step": first + stage.steps, "stage": stage.name, "validation": scores})

    def _optimizer(self, stage: Stage) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
        groups: list[dict[str, Any]] = [{"params": list(self.model.decoder.parameters()), "lr": self.config.decoder_lr}]
        if stage.trains_encoder:
            groups.append({"params": list(self.model.encoder.parameters()), "lr": self.config.encoder_lr})
        optimizer = torch.optim.AdamW(groups, weight_decay=self.config.weight_decay)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in groups],
            total_steps=stage.steps + 1,  # the last call to step() sets a rate that is never used
            pct_start=self.config.warmup,
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
        if not math.isfinite(self.loss):
            raise SimoError(
                f"the loss of {task.name} became {self.loss} at step {step}; lower encoder_lr and decoder_lr, or "
                "train with precision float32"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], self.config.clip)
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
