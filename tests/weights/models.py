"""Small ViTs in every layout that their weights come in."""

from __future__ import annotations

import torch
from torch import nn

from simo_merge.weights.architecture import create_vit

Tensors = dict[str, torch.Tensor]

TINY = "test_vit"  # timm's own model for tests: 0.3 M parameters, 16x16 patches, a 10x10 grid
SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2}


def taps(vit: nn.Module, height: int, width: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return vit.forward_intermediates(
            images, indices=[0, 1], return_prefix_tokens=True, intermediates_only=True, norm=False
        )


def randomised(vit: nn.Module) -> nn.Module:
    """Give every parameter values of its own: zeros and ones, as models start with, would hide a mix-up."""
    generator = torch.Generator().manual_seed(2)
    for parameter in vit.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return vit


def dinov2(registers: bool = False, image_size: tuple[int, int] = (70, 70)) -> nn.Module:
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    return randomised(create_vit(name, image_size, **SMALL))


def facebook(vit: nn.Module, chunks: int = 0) -> Tensors:
    """timm -> the original DINOv2's names, written out the plain way."""
    out: Tensors = {"mask_token": torch.zeros(1, 24)}
    for name, value in vit.state_dict().items():
        parts = name.split(".")
        if chunks and parts[0] == "blocks":
            parts.insert(1, str(int(parts[1]) // chunks))
        out[".".join(parts)] = value.clone()
    if "reg_token" in out:
        out["register_tokens"] = out.pop("reg_token")
        class_position = torch.full((1, 1, 24), 0.25)
        out["cls_token"] = out["cls_token"] - class_position
        out["pos_embed"] = torch.cat([class_position, out["pos_embed"]], dim=1)
    return out


def transformers(vit: nn.Module) -> Tensors:
    """timm -> transformers' Dinov2Model, written out the plain way."""
    own = facebook(vit)
    out: Tensors = {
        "embeddings.mask_token": own["mask_token"],
        "embeddings.cls_token": own["cls_token"],
        "embeddings.position_embeddings": own["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": own["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": own["patch_embed.proj.bias"],
        "layernorm.weight": own["norm.weight"],
        "layernorm.bias": own["norm.bias"],
    }
    if "register_tokens" in own:
        out["embeddings.register_tokens"] = own["register_tokens"]
    for n in range(2):
        old, new = f"blocks.{n}.", f"encoder.layer.{n}."
        for kind in ("weight", "bias"):
            for i, part in enumerate(("query", "key", "value")):
                out[f"{new}attention.attention.{part}.{kind}"] = own[f"{old}attn.qkv.{kind}"].chunk(3)[i].clone()
            out[f"{new}attention.output.dense.{kind}"] = own[f"{old}attn.proj.{kind}"]
            for same in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{new}{same}.{kind}"] = own[f"{old}{same}.{kind}"]
        for i in (1, 2):
            out[f"{new}layer_scale{i}.lambda1"] = own[f"{old}ls{i}.gamma"]
    return out


def inside(tensors: Tensors, prefix: str) -> Tensors:
    beside = {"decoder.blocks.0.weight": torch.ones(3), "segmentation_head.0.bias": torch.ones(1)}
    return {**{prefix + name: value.clone() for name, value in tensors.items()}, **beside}
