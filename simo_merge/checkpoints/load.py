"""Reading checkpoints, and saying what is wrong with those that cannot be read."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from simo_merge.checkpoints.config import FORMAT, FORMAT_VERSION, CheckpointConfig
from simo_merge.checkpoints.smp import load_smp
from simo_merge.errors import SimoError
from simo_merge.models import (
    BaseRecord,
    Encoder,
    MergeRecord,
    MultiTaskModel,
    SingleTaskModel,
    aligner_from_config,
    block_changes_from_config,
    decoder_from_config,
)
from simo_merge.tasks import Task, parse_task
from simo_merge.weights import build_vit, fingerprint
from simo_merge.weights.files import refuse_non_finite


def load(directory: str | Path, task: Task | None = None) -> SingleTaskModel | MultiTaskModel:
    """Read a checkpoint written by `save`, or a directory written by smp's `save_pretrained`.

    Args:
        directory: the checkpoint.
        task: what an smp model predicts; our own checkpoints know it themselves.

    Returns:
        The model in evaluation mode, on the CPU. Its path is in `provenance["path"]`.

    Raises:
        SimoError: no checkpoint there, a damaged or truncated file, a format of a newer version, NaN or infinity
            in the weights, or an smp model without its task.
    """
    path = Path(directory)
    model = _load(path, task)
    model.provenance["path"] = str(directory)
    return model.eval()


def load_expert(directory: str | Path, task: Task | None = None) -> SingleTaskModel:
    """Like `load`, for a single-task model.

    Raises:
        SimoError: as `load`, or when the checkpoint holds a multi-task model.
    """
    model = load(directory, task)
    if not isinstance(model, SingleTaskModel):
        raise SimoError(
            f"{directory} is a multi-task model ({', '.join(model.tasks)}); a single-task model is needed here"
        )
    return model


def _load(path: Path, task: Task | None) -> SingleTaskModel | MultiTaskModel:
    raw = _read_config(path)
    if raw.get("format") != FORMAT:
        if "_model_class" in raw:
            return load_smp(path, raw, task)
        raise SimoError(f'{path} is no simo_merge checkpoint: its config.json has no "format": "{FORMAT}"')
    if raw.get("format_version") != FORMAT_VERSION:
        raise SimoError(
            f"{path} has format version {raw.get('format_version')!r}; this simo_merge reads version "
            f"{FORMAT_VERSION}. Upgrade simo_merge, or write the checkpoint again"
        )
    try:
        config = CheckpointConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SimoError(f"{path / 'config.json'}: {where}: {first['msg']}") from error
    tensors = _read_tensors(path / "model.safetensors")
    model = _build(config, path)
    _fill(model, tensors, path)
    if fingerprint(tensors) != config.sha256:
        raise SimoError(
            f"{path / 'model.safetensors'} is not the file that config.json was written with (its fingerprint "
            "differs); it is damaged or was replaced. Write the checkpoint again"
        )
    return model


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise SimoError(f"{path} {what}; a checkpoint is a directory with config.json and model.safetensors")
    file = path / "config.json"
    if not file.is_file():
        raise SimoError(f"{path} is no checkpoint: it has no config.json")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SimoError(f"{file} is damaged: {error}") from error
    if not isinstance(raw, dict):
        raise SimoError(f"{file} is damaged: expected a JSON object, got {type(raw).__name__}")
    return raw


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise SimoError(f"{file} is missing; the checkpoint is incomplete")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise SimoError(f"{file} is damaged or truncated ({error}); write the checkpoint again") from error
    refuse_non_finite(tensors, str(file))
    return tensors


def _build(config: CheckpointConfig, path: Path) -> SingleTaskModel | MultiTaskModel:
    vit = build_vit(config.encoder.name, config.encoder.image_size)
    encoder = Encoder(vit, config.encoder.name, config.encoder.taps)
    base = BaseRecord(**config.base.model_dump()) if config.base else None
    tasks = [parse_task(task) for task in config.tasks]
    decoders = {name: decoder_from_config(options) for name, options in config.decoders.items()}
    if config.kind == "single-task":
        if len(tasks) != 1 or set(decoders) != {tasks[0].name}:
            raise SimoError(f"{path / 'config.json'}: a single-task model has one task and its decoder")
        return SingleTaskModel(encoder, decoders[tasks[0].name], tasks[0], base, config.provenance)
    return MultiTaskModel(
        encoder,
        decoders,
        {task.name: task for task in tasks},
        {name: aligner_from_config(options) for name, options in config.aligners.items()},
        base,
        MergeRecord(**config.merge.model_dump()) if config.merge else None,
        {task.name: copy.deepcopy(encoder) for task in tasks} if config.task_encoders else None,
        config.provenance,
        {name: block_changes_from_config(options) for name, options in config.block_changes.items()},
    )


def _fill(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(tensors))
    extra = sorted(set(tensors) - set(wanted))
    shapes = [n for n in wanted if n in tensors and wanted[n].shape != tensors[n].shape]
    if missing or extra or shapes:
        raise SimoError(
            f"{path}: model.safetensors does not fit config.json: {len(missing)} tensors missing "
            f"{missing[:3]}, {len(extra)} unexpected {extra[:3]}, {len(shapes)} of another shape {shapes[:3]}"
        )
    model.load_state_dict(tensors)
