"""Joint multi-task training: one encoder and several decoders from one base, on labels of all tasks at once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import torch

from simo_merge.checkpoints import load, model_fingerprint
from simo_merge.data import DenseDataset
from simo_merge.device import peak_memory, resolve_device, resolve_precision
from simo_merge.distributed import by_main
from simo_merge.errors import SimoError
from simo_merge.models import BaseRecord, Encoder, MergeRecord, MultiTaskModel, SingleTaskModel, build_decoder
from simo_merge.scoring import scorable_tasks
from simo_merge.training.config import recipe_hash
from simo_merge.training.distillation import Distillation
from simo_merge.training.experts import found, keep, processes
from simo_merge.training.joint_config import JointConfig, joint_recipe
from simo_merge.training.trainer import Trainer
from simo_merge.weights import Base, cache_directory, load_base

_LOG = logging.getLogger(__name__)
Experts = Mapping[str, SingleTaskModel]


def train_joint(
    dataset: DenseDataset,
    tasks: Sequence[str],
    config: JointConfig | None = None,
    base: Base | None = None,
    taps: tuple[int, ...] | None = None,
    validation: DenseDataset | None = None,
    device: str | torch.device | None = None,
    workers: int = 0,
    experts: Sequence[SingleTaskModel] | None = None,
) -> MultiTaskModel:
    """Fine-tune one encoder for several tasks, or take the model from the cache if this recipe was trained before.

    The stages, schedules, images and augmentations are those of `train_expert`, and each decoder begins with the
    weights that its expert's began with, so that joint training and merging are compared in pairs. With one task
    and equal weights it is `train_expert`, bit for bit. Several processes share the work as there.

    Args:
        dataset: training images with labels for all the tasks.
        tasks: which of the data set's tasks.
        config: options; default: `JointConfig()`, equal weights.
        base: base weights; default: `load_base()`.
        taps: block indices that the decoders read; default: four, evenly spaced.
        validation: scored at the end of each stage, for `metrics.jsonl`.
        device: where to train; default: the GPU if there is one.
        workers: loader processes.
        experts: the expert of each task, where `config.distill` asks for them; they are not changed.

    Returns:
        The model in evaluation mode, on the CPU; `provenance` holds its recipe, seconds (whole and a step of each
        stage), peak memory in bytes (of the GPU, else of the process that ended the run) and its path in the cache.

    Raises:
        SimoError: no task, one twice or one without labels, an empty data set, validation data or experts that do
            not suit, a library that the weighting needs, or a loss that became NaN.
    """
    config = config or JointConfig()
    where = resolve_device(device)
    config = replace(config, precision=resolve_precision(config.precision, where))
    _check_data(dataset, tasks, validation)
    teachers = _teachers(tasks, config, experts)
    base = base or load_base()
    model = _fresh(dataset, tasks, config, base, taps)
    fingerprints = {task: model_fingerprint(expert) for task, expert in teachers.items()}
    recipe = joint_recipe(dataset, model, config, fingerprints)
    folder = cache_directory() / "joint" / recipe_hash(recipe)
    work = folder.with_name(folder.name + ".unfinished")
    if by_main(lambda: found(folder, work)):
        _LOG.info("%s: taken from the cache (%s)", " + ".join(tasks), folder)
        return cast(MultiTaskModel, load(folder))
    distillation = _distillation(model, config, teachers, where)
    trainer = Trainer(
        model.to(where),
        dataset,
        config,
        work,
        validation,
        workers,
        weighting=config.weighting,
        distillation=distillation,
    )
    cost = _run(trainer, where)
    model.to("cpu").eval()
    model.merge = _record(dataset, config, teachers, fingerprints)
    model.provenance = {
        "recipe": recipe,
        "recipe_hash": folder.name,
        "image_size": list(dataset[0].size),
        **cost,
        **processes(),
    }
    by_main(lambda: keep(model, folder, work))
    return cast(MultiTaskModel, load(folder))


def _check_data(dataset: DenseDataset, tasks: Sequence[str], validation: DenseDataset | None) -> None:
    if not tasks or len(set(tasks)) < len(tasks):
        raise SimoError(f"tasks are {list(tasks)}; name one or more, each once")
    strangers = [task for task in tasks if task not in dataset.tasks]
    if strangers:
        known = ", ".join(dataset.tasks) or "none"
        raise SimoError(
            f"{dataset.name} ({dataset.split}) has no labels for task(s) {', '.join(strangers)}; its tasks: {known}"
        )
    if len(dataset) == 0:
        raise SimoError(f"{dataset.name} ({dataset.split}) has no images to train on")
    if validation is not None:
        scorable_tasks({task: dataset.tasks[task] for task in tasks}, validation)


def _teachers(tasks: Sequence[str], config: JointConfig, experts: Sequence[SingleTaskModel] | None) -> Experts:
    """The experts to distil from, by task in the order of the tasks."""
    if config.distill == 0:
        if experts:
            raise SimoError("experts were given, but distill is 0; give it a weight above 0, or leave them out")
        return {}
    given = {expert.task.name: expert for expert in experts or ()}
    if set(given) != set(tasks) or len(given) != len(experts or ()):
        names = ", ".join(expert.task.name for expert in experts or ()) or "none"
        raise SimoError(f"distillation needs one expert for each of {', '.join(tasks)}; given: {names}")
    return {task: given[task] for task in tasks}


def _fresh(
    dataset: DenseDataset, tasks: Sequence[str], config: JointConfig, base: Base, taps: tuple[int, ...] | None
) -> MultiTaskModel:
    encoder = Encoder(copy.deepcopy(base.vit), base.name, taps)
    decoders = {}
    for task in tasks:
        torch.manual_seed(config.seed)  # each decoder as its expert's: no matter how many come before it
        channels = dataset.tasks[task].out_channels
        decoders[task] = build_decoder(config.decoder, encoder, channels, **config.decoder_options)
    described = {task: dataset.tasks[task] for task in tasks}
    return MultiTaskModel(encoder, decoders, described, base=BaseRecord(base.name, base.source, base.sha256))


def _distillation(
    model: MultiTaskModel, config: JointConfig, teachers: Experts, where: torch.device
) -> Distillation | None:
    if not teachers:
        return None
    frozen = {task: copy.deepcopy(expert).to(where) for task, expert in teachers.items()}
    made = Distillation(frozen, model.encoder, config.distill, config.adapter_lr, config.precision)
    made.adapters.to(where)
    return made


def _run(trainer: Trainer, where: torch.device) -> dict[str, Any]:
    """Train, and say what it took."""
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    trainer.run()
    return {
        "train_seconds": round(trainer.seconds, 1),
        "step_seconds": by_main(lambda: {k: round(v, 4) for k, v in trainer.log.step_seconds().items()}),
        "peak_memory": peak_memory(where),
        "device": where.type,
    }


def _record(
    dataset: DenseDataset, config: JointConfig, teachers: Experts, fingerprints: Mapping[str, str]
) -> MergeRecord:
    """What results say of the model: every training image was looked at, with its labels."""
    parameters = asdict(config.weighting) | ({"distill": config.distill} if teachers else {})  # type: ignore[call-overload]
    return MergeRecord(
        method=f"joint-{config.weighting.name}" + ("-distilled" if teachers else ""),
        parameters=parameters,
        experts={
            task: {"path": expert.provenance.get("path"), "sha256": fingerprints[task]}
            for task, expert in teachers.items()
        },
        images=len(dataset),
        labels=len(dataset),
    )
