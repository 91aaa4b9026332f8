"""The registry of affinity measures: each name with what it needs and how it is read off the material."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.affinity.explained import explained_by_average, explained_by_each
from simo_merge.affinity.layers import each
from simo_merge.affinity.material import Material
from simo_merge.affinity.matrix import Needs
from simo_merge.affinity.similarity import cka, rsa_images, rsa_tokens
from simo_merge.affinity.transfer import directions, relative_gain
from simo_merge.affinity.weights import Overlap, SubspaceOverlap
from simo_merge.models.blocks import block_label

Profile = Mapping[str, Tensor]


@dataclass(frozen=True)
class Found:
    """What a measure says: (T, T) values and profiles; how many images it looked at, and at how many with labels."""

    values: Tensor
    profile: Profile
    images: int = 0
    labels: int = 0


@dataclass(frozen=True)
class Measure:
    """An affinity measure.

    name: in the registry. needs: the most that it must be given. symmetric: whether [s, t] = [t, s].
    summary: what it is, in a line. compute: how it is read off the material. alone: what an encoder of its own is worth
    to a task by this measure; None: its own entry.
    """

    name: str
    needs: Needs
    symmetric: bool
    summary: str
    compute: Callable[[Material], Found]
    alone: float | None = None


def _overlap(of: Callable[[Overlap], Tensor]) -> Callable[[Material], Found]:
    return lambda material: _both(material.overlaps, of)


def _subspace(of: Callable[[SubspaceOverlap], Tensor]) -> Callable[[Material], Found]:
    def compute(material: Material) -> Found:
        whole, profile = material.subspaces
        return Found(of(whole), each(profile, of))

    return compute


def _both(found: tuple[Overlap, dict[str, Overlap]], of: Callable[[Overlap], Tensor]) -> Found:
    whole, profile = found
    return Found(of(whole), each(profile, of))


def _taps(of: Callable[[Material], list[Tensor]]) -> Callable[[Material], Found]:
    """A measure at every tap; as a whole it is their mean."""

    def compute(material: Material) -> Found:
        taps = of(material)
        images = len(next(iter(material.seen.values())).features)
        return Found(torch.stack(taps).mean(0), _by_block(material, taps), images)

    return compute


def _by_block(material: Material, taps: list[Tensor]) -> Profile:
    return {block_label(block): values for block, values in zip(material.blocks, taps, strict=True)}


def _merged(after: bool) -> Callable[[Material], Found]:
    def compute(material: Material) -> Found:
        taps = material.merged_pairs[int(after)]
        return Found(torch.stack(taps).mean(0), _by_block(material, taps), material.pair_images)

    return compute


def _agreement(material: Material) -> Found:
    values = material.looked[1]
    assert values is not None
    return Found(values, {}, material.decoded_images)


def _transfer(material: Material) -> Found:
    assert material.labelled is not None
    scores, count = material.transfer[1], len(material.labelled)
    tasks = [expert.task for expert in material.experts]
    return Found(relative_gain(scores, scores.diagonal(), directions(tasks)), {}, count, count)


def _sweep(material: Material) -> Found:
    count = material.sweep.images
    return Found(material.sweep.best_gain(), {}, count, count)


def _lookahead(material: Material) -> Found:
    count = material.gradient_images
    return Found(material.gradients.lookahead, {}, count, count)


def _gradient_cosine(material: Material) -> Found:
    found, count = material.gradients, material.gradient_images
    both = _both((found.whole, found.profile), Overlap.cosine)
    return Found(both.values, both.profile, count, count)


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("task-vector-cosine", "weights", True, "cosine of the task vectors", _overlap(Overlap.cosine)),
        Measure(
            "sign-agreement",
            "weights",
            True,
            "energy that task vectors have in common with one sign, less that with opposite signs",
            _overlap(Overlap.sign_agreement),
        ),
        Measure(
            "energy-overlap",
            "weights",
            True,
            "how far task vectors are large at the same entries, whatever their signs",
            _overlap(Overlap.energy_overlap),
        ),
        Measure(
            "norm-ratio",
            "weights",
            True,
            "the smaller task vector's norm over the larger",
            _overlap(Overlap.norm_ratio),
        ),
        Measure(
            "subspace-left",
            "weights",
            True,
            "principal angles between what the task matrices write to",
            _subspace(SubspaceOverlap.shared_outputs),
        ),
        Measure(
            "subspace-right",
            "weights",
            True,
            "principal angles between what the task matrices read",
            _subspace(SubspaceOverlap.shared_inputs),
        ),
        Measure(
            "tsv-interference",
            "weights",
            True,
            "interference of task singular vectors, negated: 0 is none",
            _subspace(SubspaceOverlap.freedom),
            alone=0.0,  # a task alone has nothing to interfere with; its own entry is that of two equal experts
        ),
        Measure("cka", "images", True, "linear CKA of patch features", _taps(lambda m: cka(m.seen))),
        Measure(
            "rsa-images",
            "images",
            True,
            "rank correlation of distances between images",
            _taps(lambda m: rsa_images(m.seen)),
        ),
        Measure(
            "rsa-tokens",
            "images",
            True,
            "rank correlation of distances between patches",
            _taps(lambda m: rsa_tokens(m.seen, m.seed)),
        ),
        Measure(
            "explained-variance",
            "images",
            False,
            "expert t's features explained by expert s's, on held-out images",
            _taps(lambda m: explained_by_each(m.seen, m.fit)),
        ),
        Measure(
            "explained-by-average",
            "images",
            False,
            "expert t's features explained by the mean of both experts', on held-out images",
            _taps(lambda m: explained_by_average(m.seen, m.fit)),
        ),
        Measure(
            "cross-agreement",
            "images",
            False,
            "decoder t on encoder s predicts what expert t does: 1 as well, 0 as badly as on the base",
            _agreement,
        ),
        Measure(
            "merged-features",
            "images",
            False,
            "expert t's features explained by those of s and t merged, as they are",
            _merged(after=False),
        ),
        Measure(
            "realigned-features",
            "images",
            False,
            "expert t's features explained by those of s and t merged, after closed-form surgery",
            _merged(after=True),
        ),
        Measure("transfer", "labels", False, "delta in percent of decoder t on encoder s", _transfer),
        Measure(
            "lambda-sweep",
            "labels",
            False,
            "points of delta that task vector s brings decoder t at best, over the base",
            _sweep,
        ),
        Measure(
            "gradient-lookahead",
            "labels",
            False,
            "part by which a step for task s lowers the loss of task t (TAG)",
            _lookahead,
        ),
        Measure("gradient-cosine", "labels", True, "cosine of the losses' gradients at the base", _gradient_cosine),
    )
}
