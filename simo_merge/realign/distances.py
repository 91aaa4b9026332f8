"""How far merged or aligned features are from an expert's, tap by tap."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simo_merge.models import Aligner, MultiTaskModel
from simo_merge.realign.channels import channel_means
from simo_merge.realign.features import CalibrationFeatures, Features, check_same_images
from simo_merge.realign.moments import summing_device
from simo_merge.realign.realignment import short

_CHUNK = 32  # images: what is made of them should stay in a CPU's cache
_CKA_TOKENS = 2048


@dataclass(frozen=True)
class TapDistance:
    """Distance of patch features to the expert's at one tap.

    l1: mean absolute difference. cosine: mean of 1 - cosine similarity over tokens. explained_variance:
    1 - sum of squared errors / sum of squared deviations of the expert from its channel means; 1 is perfect,
    below 0 is worse than the mean. cka: see `linear_cka`; None where it was not asked for.
    """

    block: int
    l1: float
    cosine: float
    explained_variance: float
    cka: float | None = None


def tap_distances(
    merged: Features,
    expert: Features,
    blocks: tuple[int, ...],
    aligner: Aligner | None = None,
    cka: bool = False,
    device: torch.device | str = "cpu",
) -> list[TapDistance]:
    """The distances at every tap; blocks are the encoder's tap indices. cka: measure that too.

    Images are taken a few at a time, so that little more than the features themselves is in memory. Sums are taken on
    the device, if it computes float64.

    Raises:
        SimoError: no image, or features of other images.
    """
    check_same_images(merged, expert)
    where = summing_device(device)
    sums = [_Sums(expert.patches[tap], cka, where) for tap in range(len(blocks))]
    for start in range(0, len(merged), _CHUNK):
        part = slice(start, start + _CHUNK)
        aligned, _ = merged.subset(part).aligned(aligner, where)
        for tap, x in enumerate(aligned):
            sums[tap].add(x, expert.patches[tap][part].to(where).float())
    return [found.distance(block) for found, block in zip(sums, blocks, strict=True)]


class _Sums:
    """What the distances at one tap are the sums of; y (N, h*w, C) are all of the expert's patches."""

    def __init__(self, y: Tensor, cka: bool, device: torch.device) -> None:
        self.mean = channel_means(y, device=device).float()
        self.values, self.tokens = y.numel(), y.shape[0] * y.shape[1]
        self.l1, self.cosine, self.error, self.spread = torch.zeros(4, dtype=torch.float64, device=device)
        self.thinned: list[tuple[Tensor, Tensor]] | None = [] if cka else None
        self.seen = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take up some images, (n, h*w, C)."""
        error = x - y
        self.l1 += _total(error.abs().sum(-1))
        self.error += _total(error.square().sum(-1))
        self.cosine += _total(1 - F.cosine_similarity(x, y, dim=-1))
        self.spread += _total((y - self.mean).square().sum(-1))
        if self.thinned is not None:
            step = -(-self.tokens // _CKA_TOKENS)
            first = -self.seen % step
            self.thinned.append((x.flatten(0, 1)[first::step], y.flatten(0, 1)[first::step]))
            self.seen += x.shape[0] * x.shape[1]

    def distance(self, block: int) -> TapDistance:
        """The distances."""
        cka = None
        if self.thinned is not None:
            x, y = (torch.cat(parts) for parts in zip(*self.thinned, strict=True))
            cka = linear_cka(x, y)
        return TapDistance(
            block=block,
            l1=float(self.l1) / self.values,
            cosine=float(self.cosine) / self.tokens,
            explained_variance=1 - float(self.error) / max(float(self.spread), 1e-12),
            cka=cka,
        )


def _total(of_tokens: Tensor) -> Tensor:
    """The sum over all tokens, in float64; of one token's channels it is enough in float32."""
    return of_tokens.sum(dtype=torch.float64)


def linear_cka(x: Tensor, y: Tensor, tokens: int = _CKA_TOKENS) -> float:
    """Linear centred kernel alignment of tokens x (n, C) and y (n, D): 1 for features equal up to turn and scale.

    || Y'X ||_F^2 / (|| X'X ||_F || Y'Y ||_F), columns centred; 0 where either never varies. More tokens than
    `tokens` are thinned evenly.

    Source: Kornblith et al., arXiv 1905.00414, section 3.
    """
    step = -(-len(x) // tokens)
    x, y = ((part[::step] - part[::step].mean(0, dtype=torch.float64)).float() for part in (x, y))
    within_x, within_y, between = ((a.T @ b).double() for a, b in ((x, x), (y, y), (y, x)))
    norm = torch.linalg.matrix_norm(within_x) * torch.linalg.matrix_norm(within_y)
    return float(between.square().sum() / norm) if norm > 0 else 0.0


def alignment_distances(
    model: MultiTaskModel,
    features: CalibrationFeatures,
    changed: Features | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, list[dict[str, Any]]]:
    """For each task and tap the distances to the expert before and after the model's aligners, as plain JSON values.

    changed: what the model's encoder gives after the re-alignment, where that changed the encoder.
    device: where aligners run and sums are taken; the model stays where it is.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for task in model.tasks:
        expert, blocks = features.experts[task], model.encoder.taps
        before = tap_distances(features.merged, expert, blocks, cka=True, device=device)
        aligner = model.aligner(task)
        now, after = changed or features.merged, before
        if aligner is not None or changed is not None:
            on_device = None if aligner is None else copy.deepcopy(aligner).to(device)
            after = tap_distances(now, expert, blocks, on_device, cka=True, device=device)
        found[task] = [
            {"block": b.block, "before": _rounded(b), "after": _rounded(a)} for b, a in zip(before, after, strict=True)
        ]
    return found


def _rounded(distance: TapDistance) -> dict[str, float]:
    return {name: short(value) for name, value in asdict(distance).items() if name != "block"}
