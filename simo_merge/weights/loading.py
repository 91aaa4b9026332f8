"""Tensors in timm's names -> a model: grids are resampled, else what does not fit is refused by name."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn

from simo_merge.errors import SimoError
from simo_merge.weights.files import first
from simo_merge.weights.layouts import Tensors

logger = logging.getLogger(__name__)

# Parts of a classifier and of masked pretraining, left out where the model has no such part.
LEFT_OUT = ("head.", "head_dist.", "fc_norm.", "lm_head.", "mask_token")
# timm's converters take these for the weights of a square grid, also where they fit as they are.
GRID_TENSORS = ("pos_embed", "relative_position_bias_table")


def load_into(vit: nn.Module, tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Load tensors in timm's names, or in a layout that timm itself converts for this family, strictly.

    Position embeddings of another grid are resampled by timm's own function (bicubic, antialiased), and the
    log says so.

    Args:
        vit: the model, changed in place.
        tensors: by name; classifiers are left out.
        origin: what to call their source in messages.

    Raises:
        SimoError: tensors are missing, left over, or of another shape; the message names a few of each.
    """
    own: Tensors = dict(vit.state_dict())
    state = _convert(vit, own, dict(tensors))
    if "pos_embed" in state and "pos_embed" in own:
        state["pos_embed"] = _fit_positions(vit, state["pos_embed"], origin)
    state = {name: value for name, value in state.items() if name in own or not name.startswith(LEFT_OUT)}
    _compare(own, state, origin)
    vit.load_state_dict(state, strict=True)


def _convert(vit: nn.Module, own: Tensors, state: Tensors) -> Tensors:
    """Apply timm's own converter of this family, to everything but grids that need no change."""
    patches = state.get("patch_embed.proj.weight")
    if patches is not None and patches.shape != own["patch_embed.proj.weight"].shape:
        return state  # timm would resample patches to another size; that is another model, and refused
    kept = {
        name: state.pop(name)
        for name, value in list(state.items())
        if name == "pos_embed" or (name.endswith(GRID_TENSORS) and name in own and value.shape == own[name].shape)
    }
    if "norm.weight" in own:
        state.pop("mask_token", None)  # by it EVA's converter decides to rename the last norm into a classifier's
    module = sys.modules[type(vit).__module__]
    convert = cast(Callable[[Tensors, nn.Module], Tensors], cast(Any, module).checkpoint_filter_fn)
    return {**convert(state, vit), **kept}


def _fit_positions(vit: nn.Module, positions: torch.Tensor, origin: str) -> torch.Tensor:
    """(1, P + h*w, C) of a square grid -> (1, P + H*W, C) of the model's; unchanged where shapes agree."""
    model = cast(Any, vit)
    if positions.ndim != 3 or positions.shape == model.pos_embed.shape:
        return positions
    prefix = 0 if getattr(model, "no_embed_class", False) else int(model.num_prefix_tokens)
    side = math.isqrt(max(positions.shape[1] - prefix, 0))
    new = tuple(int(n) for n in model.patch_embed.grid_size)
    if side == 0 or side * side != positions.shape[1] - prefix:
        raise SimoError(
            f"{origin}: {positions.shape[1]} position embeddings, less {prefix} of prefix tokens, are no "
            f"square grid, and the model's grid is {new[0]}x{new[1]}. Build the model with the image_size "
            "that they were made for."
        )
    from timm.layers.pos_embed import resample_abs_pos_embed  # timm takes a while, and merging files needs none of it

    logger.info("%s: position embeddings resampled from %dx%d to %dx%d", origin, side, side, *new)
    return cast(
        torch.Tensor,
        resample_abs_pos_embed(positions, new_size=list(new), old_size=[side, side], num_prefix_tokens=prefix),
    )


def _compare(own: Tensors, state: Tensors, origin: str) -> None:
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    found = [
        f"{len(names)} {label}: {first(names)}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if found:
        raise SimoError(
            f"{origin} does not fit the encoder. Tensors {'; '.join(found)}. Expected the weights of this "
            "very architecture, in the layout of timm, the original DINOv2, transformers' DINOv2 or "
            "segmentation_models_pytorch: check the name of the encoder."
        )
