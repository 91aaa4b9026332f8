"""Encoders without weights: timm's plain ViTs, built so that one model reads any image size where it can."""

from __future__ import annotations

import difflib
from typing import Any, cast

from torch import nn

from simo_merge.errors import SimoError

# timm's modules whose models are plain ViTs: `forward_intermediates` gives a map (B, C, h, w) and prefix
# tokens (B, P, C) for every block. The value says whether one model reads images of any size.
FAMILIES = {
    "vision_transformer": True,  # ViT, DINOv2 with and without registers, CLIP, SigLIP
    "deit": True,  # DeiT, DeiT III
    "eva": True,  # EVA-02, DINOv3, perception encoder
    "beit": False,  # BEiT, BEiT v2: relative positions are tied to one grid
}


def build_vit(name: str, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Build a timm ViT with random weights: no classifier, no network.

    Args:
        name: a timm name, with or without a pretrained tag: `vit_small_patch14_dinov2`,
            `vit_small_patch16_dinov3`, `beitv2_base_patch16_224.in1k_ft_in22k`. The tag chooses
            `pretrained_cfg`, which holds the mean and the standard deviation that images are normalised with.
        image_size: (height, width) of the grid of position embeddings, multiples of the patch size. None
            keeps timm's own. Models of the families ViT, DeiT and EVA read images of other sizes all the same
            (embeddings are resampled on the fly); BEiT reads this size only, so there it must be given.

    Returns:
        The model, in evaluation mode. Its `forward_intermediates` gives the taps of each block.

    Raises:
        SimoError: the name is unknown to timm, the model is no plain ViT, or the image size does not suit it.
    """
    return create_vit(name, image_size)


def fitting_size(name: str, height: int, width: int) -> tuple[int, int] | None:
    """The `image_size` to build an encoder with so that it reads images of this size, padded to whole patches.

    None for the families that read any size.

    Raises:
        SimoError: as `build_vit`.
    """
    if FAMILIES[family(name)]:
        return None
    patch_height, patch_width = cast(Any, build_vit(name, (224, 224))).patch_embed.patch_size
    return height + -height % patch_height, width + -width % patch_width


def create_vit(name: str, image_size: tuple[int, int] | None, **changes: Any) -> nn.Module:
    """`build_vit` with changes to the architecture (depth, ...), for models smaller than any name."""
    any_size = FAMILIES[family(name)]
    if image_size is not None and min(image_size) < 1:
        raise SimoError(f"image_size={tuple(image_size)}: expected (height, width) in pixels, both positive.")
    timm = _timm()
    cfg = timm.models.get_pretrained_cfg(name)
    if not any_size and image_size is None:
        size = tuple(cfg.input_size[1:]) if cfg is not None else (224, 224)
        raise SimoError(
            f"{name} reads images of one size only, and none was given. Pass image_size=(height, width), in "
            f"pixels, multiples of the patch size, for example {size}; images must then have that size."
        )
    options: dict[str, Any] = {"num_classes": 0, **changes}
    if any_size:
        options["dynamic_img_size"] = True
    if image_size is not None:
        options["img_size"] = image_size
    vit: nn.Module = timm.create_model(name, pretrained=False, **options)
    if image_size is not None:
        check_size(vit, name, image_size)
    return vit.eval()


def architecture(name: str) -> str:
    """The name without its pretrained tag."""
    return name.partition(".")[0]


def family(name: str) -> str:
    """Return the key of `FAMILIES` that a timm name belongs to.

    Raises:
        SimoError: the name or its tag is unknown to timm, or the model is no plain ViT.
    """
    timm = _timm()
    known = timm.list_models()
    plain = architecture(name)
    if plain not in known:
        near = difflib.get_close_matches(plain, known, n=4, cutoff=0.4)
        hint = f"Close names: {', '.join(near)}." if near else "timm.list_models() lists the names."
        raise SimoError(f"timm {timm.__version__} knows no model named {plain!r}. {hint}")
    if plain != name and name not in timm.list_pretrained(f"{plain}.*"):
        tags = ", ".join(timm.list_pretrained(plain)) or f"none, use {plain!r}"
        raise SimoError(f"timm {timm.__version__} knows no weights named {name!r}. Known for this model: {tags}.")
    module: str = timm.models.model_entrypoint(plain).__module__.rpartition(".")[2]
    if module not in FAMILIES:
        raise SimoError(
            f"{plain} is a model of timm's module {module!r}, not a plain ViT. Expected one of the modules "
            f"{', '.join(FAMILIES)}: every block must give a map of one size and prefix tokens."
        )
    return module


def check_size(vit: nn.Module, name: str, image_size: tuple[int, int]) -> None:
    """Refuse a size that the patch size does not divide; timm would drop the remainder without a word.

    Raises:
        SimoError: naming the nearest sizes that fit.
    """
    patch = tuple(cast(Any, vit).patch_embed.patch_size)
    if all(side % step == 0 for side, step in zip(image_size, patch, strict=True)):
        return
    near = tuple(max(step, round(side / step) * step) for side, step in zip(image_size, patch, strict=True))
    raise SimoError(
        f"image_size={tuple(image_size)} does not suit {name}: its patches are {patch[0]}x{patch[1]} pixels, "
        f"and height and width must be multiples of that. The nearest size is {near}."
    )


def _timm() -> Any:
    """timm, imported when an encoder is built: it takes seconds, and merging files of weights needs none of it."""
    import timm
    import timm.models

    return timm
