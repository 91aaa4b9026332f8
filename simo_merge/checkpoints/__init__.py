"""Checkpoints: a directory with `model.safetensors`, `config.json` and a model card."""

from simo_merge.checkpoints.files import prepare_output, written_directory
from simo_merge.checkpoints.load import load, load_expert
from simo_merge.checkpoints.save import model_fingerprint, save
from simo_merge.checkpoints.smp import from_smp

__all__ = [
    "from_smp",
    "load",
    "load_expert",
    "model_fingerprint",
    "prepare_output",
    "save",
    "written_directory",
]
