"""What `config.json` of a checkpoint holds, validated."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FORMAT = "simo_merge"
FORMAT_VERSION = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderConfig(_Strict):
    """The encoder: timm name, tap blocks, and the image size (H, W) of its grid of position embeddings."""

    name: str
    taps: list[int]
    image_size: tuple[int, int]


class BaseConfig(_Strict):
    """The base weights (see `models.BaseRecord`)."""

    name: str
    source: str
    sha256: str


class MergeConfig(_Strict):
    """How the model was merged and aligned (see `models.MergeRecord`)."""

    method: str
    parameters: dict[str, Any]
    experts: dict[str, dict[str, Any]]
    alignment: dict[str, Any] | None = None
    images: int = 0
    labels: int = 0


class CheckpointConfig(_Strict):
    """The whole of `config.json`.

    sha256 is the fingerprint of the tensors in `model.safetensors`; it tells a damaged file from a good one.
    task_encoders: whether every task has an encoder of its own beside the shared one.
    block_changes: what tasks change inside the shared encoder (see `models.BlockChanges`), by task.
    """

    format: Literal["simo_merge"] = "simo_merge"
    format_version: Literal[1] = 1
    kind: Literal["single-task", "multi-task"]
    encoder: EncoderConfig
    base: BaseConfig | None
    tasks: list[dict[str, Any]]
    decoders: dict[str, dict[str, Any]]
    aligners: dict[str, dict[str, Any]] = {}
    task_encoders: bool = False
    block_changes: dict[str, dict[str, Any]] = {}
    merge: MergeConfig | None = None
    provenance: dict[str, Any] = {}
    sha256: str
