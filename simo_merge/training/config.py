"""How an expert is trained, and the recipe that names it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from simo_merge.data import DenseDataset
from simo_merge.data.transforms import RECIPES
from simo_merge.device import AUTO, PRECISIONS
from simo_merge.errors import SimoError
from simo_merge.models import DECODERS, BaseRecord
from simo_merge.tasks import Task

# Raise this when training code changes in a way that gives other weights: cached experts are then trained anew.
# 2 was in use for a while and withdrawn; the next is 3.
RECIPE_VERSION = 1

AUGMENTATIONS = (*RECIPES, "none")
"""What `TrainConfig.augment` can be."""

_SILENT: dict[str, Any] = {"accumulate": 1, "checkpointing": False, "compile": False}
"""Options that change rounding alone, and that recipes are older than: they are written where they are not these."""

# How recipes write the two that are older than their names; else experts in caches would not be found again.
_WRITTEN: dict[str, bool | str] = {"default": True, "none": False}


@dataclass(frozen=True)
class TrainConfig:
    """Options of single-task fine-tuning.

    Two stages, as in arXiv 2504.11268 (appendix C): first the decoder on the frozen encoder, then both. Each
    stage has its own one-cycle schedule.

    decoder: kind of decoder, and decoder_options: its options.
    decoder_steps, steps: optimiser steps of the first and the second stage.
    batch_size: images a step.
    decoder_lr: peak learning rate of the decoder, in the first stage and in the second.
    encoder_lr: peak learning rate of the encoder in the second stage.
    weight_decay, warmup (share of a stage), clip (gradient norm): as AdamW and one-cycle take them.
    augment: a recipe of `Augmentation.named`, or "none".
    precision: "bfloat16" (autocast), "float32", or "auto", the faster on the device; the recipe says which it was.
    seed: of the decoder's initial weights, the order of images and the augmentation.

    Three options save memory or time and change the result by rounding alone:

    accumulate: micro-batches that a step's batch is cut into; one is in memory at a time. Batch norms see a
        micro-batch instead of the batch, which changes more than rounding; dropout is that of the batch.
    checkpointing: encoder blocks keep their inputs alone and are run again in the backward pass.
    compile: the encoder is compiled (torch.compile); needs a C++ compiler on a CPU, and minutes at the start.
    """

    decoder: str = "dpt"
    decoder_options: dict[str, Any] = field(default_factory=dict)
    decoder_steps: int = 100
    steps: int = 300
    batch_size: int = 8
    decoder_lr: float = 1e-3
    encoder_lr: float = 5e-5
    weight_decay: float = 1e-4
    warmup: float = 0.05
    clip: float = 25.0
    augment: str = "default"
    precision: str = AUTO
    seed: int = 0
    accumulate: int = 1
    checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        _check_kinds(self)
        if self.decoder not in DECODERS:
            raise SimoError(f"unknown decoder {self.decoder!r}; known: {', '.join(sorted(DECODERS))}")
        for name in ("batch_size", "decoder_lr", "encoder_lr", "clip"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise SimoError(f"{name} must be positive, got {value}")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise SimoError(
                f"accumulate cuts the batch into equal micro-batches: it must be 1 or more and divide batch_size "
                f"{self.batch_size}, got {self.accumulate}"
            )
        for name in ("weight_decay", "seed"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise SimoError(f"{name} must be 0 or more, got {value}")
        if self.decoder_steps < 0 or self.steps < 0 or self.decoder_steps + self.steps == 0:
            raise SimoError(
                f"decoder_steps and steps must be 0 or more, and not both 0; got {self.decoder_steps}, {self.steps}"
            )
        if not 0 < self.warmup < 1:
            raise SimoError(f"warmup is a share of a stage, between 0 and 1; got {self.warmup}")
        if self.augment not in AUGMENTATIONS:
            raise SimoError(f"unknown augmentation {self.augment!r}; known: {', '.join(AUGMENTATIONS)}")
        if self.precision not in (AUTO, *PRECISIONS):
            raise SimoError(f"unknown precision {self.precision!r}; known: {', '.join((AUTO, *PRECISIONS))}")


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((float, int), "a number"),
    "str": ((str,), "text"),
    "bool": ((bool,), "true or false"),
}


def _check_kinds(config: TrainConfig) -> None:
    """Refuse what is not of an option's kind, with the reason where YAML has read a number as text."""
    for option in fields(config):
        if option.type not in _KINDS:
            continue
        kinds, said = _KINDS[str(option.type)]
        value = getattr(config, option.name)
        if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
            continue
        without_point = isinstance(value, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", value, re.IGNORECASE)
        hint = "; YAML reads 1e-3 as text, write 1.0e-3" if float in kinds and without_point else ""
        raise SimoError(f"{option.name} must be {said}, got {value!r}{hint}")


def data_fingerprint(dataset: DenseDataset, task: str) -> str:
    """SHA-256 of a data set's keys and of eight evenly spaced samples (image, target and mask).

    A cheap stand-in for hashing every file: a changed selection, encoding or resolution changes it.
    """
    digest = hashlib.sha256(json.dumps(list(dataset.keys)).encode())
    for index in np.linspace(0, len(dataset) - 1, num=min(8, len(dataset)), dtype=int):
        sample = dataset[int(index)]
        for tensor in (sample.image, sample.targets[task], sample.masks[task]):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def expert_recipe(
    dataset: DenseDataset, task: Task, base: BaseRecord, taps: tuple[int, ...], config: TrainConfig
) -> dict[str, Any]:
    """Everything that decides an expert's weights, as plain JSON values."""
    return {
        "recipe_version": RECIPE_VERSION,
        "task": task.model_dump(mode="json"),
        "encoder": {"name": base.name, "base_sha256": base.sha256, "taps": list(taps)},
        "data": {
            "name": dataset.name,
            "split": dataset.split,
            "images": len(dataset),
            "sha256": data_fingerprint(dataset, task.name),
        },
        "training": training_options(config),
    }


def training_options(config: TrainConfig) -> dict[str, Any]:
    """The options of `TrainConfig` as recipes write them; a child's own options are not among them."""
    options = asdict(config)
    own = {field.name: options[field.name] for field in fields(TrainConfig)}
    own = {name: value for name, value in own.items() if name not in _SILENT or value != _SILENT[name]}
    return own | {"augment": _WRITTEN.get(config.augment, config.augment)}


def recipe_hash(recipe: dict[str, Any]) -> str:
    """A short name for a recipe: the first 16 hexadecimal digits of the SHA-256 of its JSON."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
