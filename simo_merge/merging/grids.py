"""Experts whose encoders were built for another grid of position embeddings than the base's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from simo_merge.errors import SimoError
from simo_merge.merging.positions import OFFER, POSITIONS, Grid, ResampledPositions, grid_of
from simo_merge.merging.stored import stored_in
from simo_merge.models import BaseRecord, Encoder, SingleTaskModel
from simo_merge.weights import Base, fingerprint, load_base

Size = tuple[int, int]


def image_size_of(vit: nn.Module) -> Size:
    """The image size (H, W) of a ViT's grid of position embeddings."""
    height, width = cast(Any, vit).patch_embed.img_size
    return int(height), int(width)


def grid_for(state: Mapping[str, Tensor], image_size: Size, label: str) -> Grid:
    """The layout of a ViT's position embeddings, from the image size that it was built for."""
    patch = stored_in(state, "patch_embed.proj.weight").shape[-2:]
    return grid_of(state, label, (image_size[0] // patch[0], image_size[1] // patch[1]))


def with_grid_of(base: Base, expert: SingleTaskModel) -> SingleTaskModel:
    """The expert with position embeddings of the base's grid; itself where it has them already.

    A copy shares the decoder, and records what the expert records.
    """
    size, wanted = expert.encoder.grid_size, image_size_of(base.vit)
    state = expert.encoder.vit.state_dict()
    if size == wanted or POSITIONS not in state:
        return expert
    label = f"the encoder of {expert.task.name}"
    old, new = grid_for(state, size, label), grid_for(base.vit.state_dict(), wanted, "the base")
    vit = copy.deepcopy(base.vit)
    vit.load_state_dict(dict(ResampledPositions(state, old, new, label)))
    encoder = Encoder(vit, expert.encoder.name, expert.encoder.taps)
    model = SingleTaskModel(encoder, expert.decoder, expert.task, expert.base, expert.provenance)
    return model.train(expert.training)


def check_base_at(base: Base, record: BaseRecord, image_size: Size, whose: str) -> None:
    """Refuse a base that is not what an expert of another grid came from.

    The fingerprint that the expert records is of the base at the expert's grid. It is that of this base, resampled; or
    else, where this base was resampled itself, that of the same weights loaded anew from the source that is recorded.

    Raises:
        SimoError: neither is.
    """
    state = base.vit.state_dict()
    old = grid_for(state, image_size_of(base.vit), "the base")
    patch = state["patch_embed.proj.weight"].shape[-2:]
    new = Grid(image_size[0] // patch[0], image_size[1] // patch[1], old.prefix)
    if fingerprint(dict(ResampledPositions(state, old, new, "the base"))) == record.sha256:
        return
    scheme = record.source.partition(":")[0]
    if scheme != "file" and _loads_as(base, record, scheme, image_size):
        return
    raise SimoError(
        f"{whose} came from {record.name} ({record.source}, {record.sha256[:12]}) for images of "
        f"{image_size[0]}x{image_size[1]}, which the base given ({base.name}, {base.source}, {base.sha256[:12]}) does "
        "not become when its position embeddings are resampled; give the base that the experts were fine-tuned from, "
        "with the position embeddings of its own size"
    )


def _loads_as(base: Base, record: BaseRecord, scheme: str, image_size: Size) -> bool:
    """Whether the source holds what the record says, and but for position embeddings what the base holds."""
    try:
        found = load_base(record.name, scheme, image_size)
    except SimoError:  # a source that is out of reach tells nothing
        return False
    ours, theirs = (
        {name: value for name, value in vit.state_dict().items() if name != POSITIONS} for vit in (base.vit, found.vit)
    )
    return found.sha256 == record.sha256 and fingerprint(ours) == fingerprint(theirs)


def other_grid(one: str, size: Size, other: str, other_size: Size) -> str:
    """The message about position embeddings of different image sizes."""
    return (
        f"{one} has position embeddings for images of {size[0]}x{size[1]}, {other} for {other_size[0]}x"
        f"{other_size[1]} (height x width): give all one image size, or {OFFER}"
    )
