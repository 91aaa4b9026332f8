"""Experts by recipe: trained once, found again by the hash of everything that decides their weights."""

from __future__ import annotations

import copy
import logging
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from simo_merge.checkpoints import load_expert, save
from simo_merge.data import DenseDataset
from simo_merge.device import resolve_device, resolve_precision
from simo_merge.distributed import by_main, world_size
from simo_merge.errors import SimoError
from simo_merge.models import BaseRecord, Encoder, MultiTaskModel, SingleTaskModel, build_decoder
from simo_merge.scoring import scorable_tasks
from simo_merge.training.config import TrainConfig, expert_recipe, recipe_hash
from simo_merge.training.trainer import Trainer
from simo_merge.weights import Base, cache_directory, load_base

_LOG = logging.getLogger(__name__)


def train_expert(
    dataset: DenseDataset,
    task: str,
    config: TrainConfig | None = None,
    base: Base | None = None,
    taps: tuple[int, ...] | None = None,
    validation: DenseDataset | None = None,
    device: str | torch.device | None = None,
    workers: int = 0,
) -> SingleTaskModel:
    """Fine-tune an expert for one task, or take it from the cache if this recipe was trained before.

    The run lives in the cache directory under the hash of its recipe; when it is killed, the same call goes on
    where its last state was written. Where a launcher started several processes, all of them make this call, share
    every batch, and need the same cache directory.

    Args:
        dataset: labelled training images.
        task: which of the data set's tasks.
        config: options of training.
        base: base weights; default: `load_base()`.
        taps: block indices that the decoder reads; default: four, evenly spaced.
        validation: scored at the end of each stage, for `metrics.jsonl`.
        device: where to train; default: the GPU if there is one.
        workers: loader processes.

    Returns:
        The expert in evaluation mode, on the CPU; `provenance` holds its recipe and its path in the cache.

    Raises:
        SimoError: a task without labels in the data set, an empty data set, validation data that do not suit, or
            a loss that became NaN; or a batch that does not divide by the number of processes.
    """
    config = config or TrainConfig()
    where = resolve_device(device)
    config = replace(config, precision=resolve_precision(config.precision, where))
    if task not in dataset.tasks:
        known = ", ".join(dataset.tasks) or "none"
        raise SimoError(f"{dataset.name} ({dataset.split}) has no labels for task {task!r}; its tasks: {known}")
    if len(dataset) == 0:
        raise SimoError(f"{dataset.name} ({dataset.split}) has no images to train on")
    if validation is not None:
        scorable_tasks({task: dataset.tasks[task]}, validation)
    base = base or load_base()
    record = BaseRecord(base.name, base.source, base.sha256)
    model = _fresh(dataset, task, config, base, record, taps)
    recipe = expert_recipe(dataset, model.task, record, model.encoder.taps, config)
    folder = expert_folder(recipe)
    work = folder.with_name(folder.name + ".unfinished")
    if by_main(lambda: found(folder, work)):
        _LOG.info("%s: taken from the cache (%s)", task, folder)
        return load_expert(folder)
    trainer = Trainer(model.to(where), dataset, config, work, validation, workers)
    trainer.run()
    model.to("cpu").eval()
    model.provenance = {
        "recipe": recipe,
        "recipe_hash": folder.name,
        "image_size": list(dataset[0].size),
        "train_seconds": round(trainer.seconds, 1),
        **processes(),
    }
    by_main(lambda: keep(model, folder, work))
    return load_expert(folder)


def processes() -> dict[str, int]:
    """How many processes shared the work, where more than one did: the result depends on it by rounding alone."""
    return {"processes": world_size()} if world_size() > 1 else {}


def found(folder: Path, work: Path) -> bool:
    """Whether a model is in the cache; if so, what a kill left of its run is cleared away."""
    if not folder.is_dir():
        return False
    _clear(folder, work)
    return True


def keep(model: SingleTaskModel | MultiTaskModel, folder: Path, work: Path) -> None:
    """Put a trained model and the log of its run into the cache, and clear the run's own folder away."""
    save(model, folder)
    _clear(folder, work)


def _clear(folder: Path, work: Path) -> None:
    with suppress(FileNotFoundError):  # there is none, or another process was faster
        (work / "metrics.jsonl").replace(folder / "metrics.jsonl")
    shutil.rmtree(work, ignore_errors=True)


def expert_folder(recipe: dict[str, Any]) -> Path:
    """Where the expert of a recipe is kept."""
    return cache_directory() / "experts" / recipe_hash(recipe)


def _fresh(
    dataset: DenseDataset,
    task: str,
    config: TrainConfig,
    base: Base,
    record: BaseRecord,
    taps: tuple[int, ...] | None,
) -> SingleTaskModel:
    encoder = Encoder(copy.deepcopy(base.vit), base.name, taps)
    torch.manual_seed(config.seed)
    description = dataset.tasks[task]
    decoder = build_decoder(config.decoder, encoder, description.out_channels, **config.decoder_options)
    return SingleTaskModel(encoder, decoder, description, record)
