"""How far merged or aligned features are from an expert's, tap by tap."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
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
    return _distances(merged, expert, blocks, [aligner], cka, device)[0]


def _distances(
    merged: Features,
    expert: Features,
    blocks: tuple[int, ...],
    aligners: Sequence[Aligner | None],
    cka: bool,
    device: torch.device | str,
) -> list[list[TapDistance]]:
    """The distances of `tap_distances` for each aligner; the expert's features are read once for all of them."""
    check_same_images(merged, expert)
    where = summing_device(device)
    experts = [_Expert(expert.patches[tap], cka, where) for tap in range(len(blocks))]
    sums = [[_Sums(of) for of in experts] for _ in aligners]
    for start in range(0, len(merged), _CHUNK):
        part = slice(start, start + _CHUNK)
        theirs = [expert.patches[tap][part].to(where).float() for tap in range(len(blocks))]
        ours = merged.subset(part)
        for aligner, found in zip(aligners, sums, strict=True):
            for of_tap, x, y in zip(found, ours.aligned(aligner, where)[0], theirs, strict=True):
                of_tap.add(x, y)
        for of, y in zip(experts, theirs, strict=True):
            of.add(y)
    return [[of_tap.distance(block) for of_tap, block in zip(found, blocks, strict=True)] for found in sums]


class _Expert:
    """What the distances at one tap need of the expert alone; y (N, h*w, C) are all of its patches."""

    def __init__(self, y: Tensor, cka: bool, device: torch.device) -> None:
        self.mean = channel_means(y, device=device).float()
        self.values, self.tokens = y.numel(), y.shape[0] * y.shape[1]
        self.spread = torch.zeros((), dtype=torch.float64, device=device)
        self.cka, self.seen = cka, 0
        self.thinned: list[Tensor] = []

    def add(self, y: Tensor) -> None:
        """Take up some images, (n, h*w, C)."""
        self.spread += _total((y - self.mean).square().sum(-1))
        if self.cka:
            self.thinned.append(self.thin(y))
        self.seen += y.shape[0] * y.shape[1]

    def thin(self, tokens: Tensor) -> Tensor:
        """Those of the next images' tokens (n, h*w, C) that CKA is measured on."""
        step = -(-self.tokens // _CKA_TOKENS)
        return tokens.flatten(0, 1)[-self.seen % step :: step].clone()  # a view would keep all of them

    @cached_property
    def centred(self) -> tuple[Tensor, float]:
        """The tokens that CKA is measured on, centred, and the norm of Y'Y; once all images were taken up."""
        y = _centred(torch.cat(self.thinned))
        return y, _gram(y, y)


class _Sums:
    """What the distances at one tap are the sums of."""

    def __init__(self, expert: _Expert) -> None:
        self.expert = expert
        self.l1, self.cosine, self.error = torch.zeros(3, dtype=torch.float64, device=expert.mean.device)
        self.thinned: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take up some images, (n, h*w, C), before the expert does."""
        error = x - y
        self.l1 += _total(error.abs().sum(-1))
        self.error += _total(error.square().sum(-1))
        self.cosine += _total(1 - F.cosine_similarity(x, y, dim=-1))
        if self.expert.cka:
            self.thinned.append(self.expert.thin(x))

    def distance(self, block: int) -> TapDistance:
        """The distances."""
        expert, cka = self.expert, None
        if expert.cka:
            y, within_y = expert.centred
            cka = _cka(_centred(torch.cat(self.thinned)), y, within_y)
        return TapDistance(
            block=block,
            l1=float(self.l1) / expert.values,
            cosine=float(self.cosine) / expert.tokens,
            explained_variance=1 - float(self.error) / max(float(expert.spread), 1e-12),
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
    x, y = _centred(x[::step]), _centred(y[::step])
    return _cka(x, y, _gram(y, y))


def _cka(x: Tensor, y: Tensor, within_y: float) -> float:
    """CKA of centred tokens; within_y: || Y'Y ||_F."""
    norm = _gram(x, x) * within_y
    return _gram(y, x) ** 2 / norm if norm > 0 else 0.0


def _centred(tokens: Tensor) -> Tensor:
    return (tokens - tokens.mean(0, dtype=torch.float64)).float()


def _gram(a: Tensor, b: Tensor) -> float:
    """|| A'B ||_F."""
    return float(torch.linalg.matrix_norm((a.T @ b).double()))


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
        aligner = model.aligner(task)
        on_device = None if aligner is None else copy.deepcopy(aligner).to(device)
        wanted = [None] if changed is not None or on_device is None else [None, on_device]
        before, *rest = _distances(features.merged, expert, blocks, wanted, True, device)
        after = rest[0] if rest else before
        if changed is not None:
            after = tap_distances(changed, expert, blocks, on_device, cka=True, device=device)
        found[task] = [
            {"block": b.block, "before": _rounded(b), "after": _rounded(a)} for b, a in zip(before, after, strict=True)
        ]
    return found


def _rounded(distance: TapDistance) -> dict[str, float]:
    return {name: short(value) for name, value in asdict(distance).items() if name != "block"}
