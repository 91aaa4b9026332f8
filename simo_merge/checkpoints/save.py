"""Writing checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import cast

from safetensors.torch import save_file
from torch import Tensor, nn

from simo_merge.checkpoints.card import model_card
from simo_merge.checkpoints.config import BaseConfig, CheckpointConfig, EncoderConfig, MergeConfig
from simo_merge.checkpoints.files import written_directory
from simo_merge.models import Aligner, BlockChanges, Decoder, MultiTaskModel, SingleTaskModel, fold_aligners
from simo_merge.weights import fingerprint


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 of all tensors of a model (see `weights.fingerprint`)."""
    return fingerprint(model.state_dict())


def save(
    model: SingleTaskModel | MultiTaskModel, directory: str | Path, overwrite: bool = False, fold: bool = False
) -> Path:
    """Write a model to `directory`: `model.safetensors`, `config.json` and `README.md` (the model card).

    fold: multiply aligners into the decoders behind them where that is exact (`models.fold_aligners`), so that the
    model that is read again predicts as this one does and costs what an unaligned one does.

    The directory appears when it is complete. The layout is that of a model on the Hugging Face Hub.

    Raises:
        SimoError: the directory exists and is not empty, and `overwrite` is not set.
    """
    if fold and isinstance(model, MultiTaskModel):
        model = fold_aligners(model)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    config = _config(model, tensors)
    with written_directory(directory, overwrite) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "config.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (temporary / "model.safetensors").chmod(
            (temporary / "config.json").stat().st_mode & 0o777
        )  # not the owner's alone
        (temporary / "README.md").write_text(model_card(config), encoding="utf-8")
    return Path(directory)


def _config(model: SingleTaskModel | MultiTaskModel, tensors: dict[str, Tensor]) -> CheckpointConfig:
    encoder = model.encoder
    if isinstance(model, SingleTaskModel):
        decoders = {model.task.name: model.decoder.config}
        aligners, changes = {}, {}
        merge = None
    else:
        decoders = {name: cast(Decoder, d).config for name, d in model.decoders.items()}
        aligners = {name: cast(Aligner, a).config for name, a in model.aligners.items()}
        changes = {name: cast(BlockChanges, c).config for name, c in model.block_changes.items()}
        merge = MergeConfig(**asdict(model.merge)) if model.merge else None
    provenance = {k: v for k, v in model.provenance.items() if k != "path"}  # where it lay is not what it is
    return CheckpointConfig(
        kind="single-task" if isinstance(model, SingleTaskModel) else "multi-task",
        encoder=EncoderConfig(name=encoder.name, taps=list(encoder.taps), image_size=encoder.grid_size),
        base=BaseConfig(**asdict(model.base)) if model.base else None,
        tasks=[task.model_dump(mode="json") for task in model.tasks.values()],
        decoders=decoders,
        aligners=aligners,
        task_encoders=isinstance(model, MultiTaskModel) and len(model.task_encoders) > 0,
        block_changes=changes,
        merge=merge,
        provenance=provenance,
        sha256=fingerprint(tensors),
    )
