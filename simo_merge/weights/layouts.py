"""Layouts of ViT weights: one encoder under several namings, brought to timm's. Only the keys say which.

* timm: `patch_embed.proj.weight`, `blocks.N.attn.qkv.weight`, ...
* the original DINOv2: `mask_token`, `register_tokens`, chunked blocks (`blocks.0.3.`), SwiGLU as `w12`, `w3`
* transformers: `embeddings.patch_embeddings.projection.weight`,
  `encoder.layer.N.attention.attention.query.weight`, ...
* any of them inside a larger model, where a prefix stands before each key: `encoder.model.` in
  segmentation_models_pytorch, `encoder.vit.` in this package, `backbone.` in DINOv2's training checkpoints.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch

from simo_merge.errors import SimoError

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]

# A ViT has one of these, and has it once: what stands before it is the prefix of the encoder.
TIMM_MARK = "patch_embed.proj.weight"
TRANSFORMERS_MARK = "embeddings.patch_embeddings.projection.weight"

# transformers' name -> the original DINOv2's; query, key and value are joined beforehand.
_TRANSFORMERS_NAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
)


def to_timm(tensors: Mapping[str, torch.Tensor], origin: str) -> Tensors:
    """Bring a state dict of any known layout to timm's names; a model around the encoder is left out.

    Args:
        tensors: the state dict as it was read.
        origin: what to call its source in messages.

    Raises:
        SimoError: there are several encoders in it. Keys of no known layout pass unchanged, and are refused
            by name when they are loaded.
    """
    marks = [name for name in tensors if name.endswith((TIMM_MARK, TRANSFORMERS_MARK))]
    if len(marks) > 1:
        raise SimoError(
            f"{origin} holds {len(marks)} encoders (at {', '.join(sorted(marks)[:3])}); expected one. "
            "Save the one you mean in a file of its own."
        )
    if not marks:
        return dict(tensors)
    mark = TIMM_MARK if marks[0].endswith(TIMM_MARK) else TRANSFORMERS_MARK
    prefix = marks[0].removesuffix(mark)
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if prefix:
        logger.info(
            "%s: the encoder is %r; %d tensors beside it are left out",
            origin,
            prefix.rstrip("."),
            len(tensors) - len(inside),
        )
    return _from_dinov2(_from_transformers(inside) if mark == TRANSFORMERS_MARK else inside)


def _from_transformers(tensors: Tensors) -> Tensors:
    """Dinov2Model and Dinov2WithRegistersModel of transformers -> the original DINOv2."""
    out: Tensors = {}
    for name, value in tensors.items():
        if ".attention.attention." in name:
            if ".query." in name:
                parts = [tensors.get(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
                block = name.replace("encoder.layer.", "blocks.").partition(".attention.")[0]
                joined = [part for part in parts if part is not None]
                out[f"{block}.attn.qkv.{name.rpartition('.')[2]}"] = torch.cat(joined)  # (3C, C) or (3C,)
            continue
        for pattern, replacement in _TRANSFORMERS_NAMES:
            name = re.sub(pattern, replacement, name)
        out[name] = value
    return out


def _from_dinov2(tensors: Tensors) -> Tensors:
    """The original DINOv2 -> timm; what is in timm's layout already is unchanged."""
    out: Tensors = {}
    for name, value in tensors.items():
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)  # the number inside a chunk counts from block 0
        name = re.sub(r"^(blocks\.\d+\.mlp\.)w12\.", r"\1fc1.", name)
        name = re.sub(r"^(blocks\.\d+\.mlp\.)w3\.", r"\1fc2.", name)
        out[name] = value
    out.pop("mask_token", None)  # used in pretraining only
    if "register_tokens" in out and "pos_embed" in out and "cls_token" in out:
        # timm keeps no position for prefix tokens here: that of the class token is part of the token.
        position = out["pos_embed"]  # (1, 1 + h*w, C)
        out["reg_token"] = out.pop("register_tokens")
        out["cls_token"] = out["cls_token"] + position[:, :1]
        out["pos_embed"] = position[:, 1:]
    return out
