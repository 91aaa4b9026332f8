"""All measures through the one door: known cases, what is refused, and that nothing changes."""

from __future__ import annotations

import pytest
import torch

from simo_merge.affinity import MEASURES, AffinityOptions, affinity
from simo_merge.models import SingleTaskModel
from simo_merge.weights import Base
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData, state_of, tiny_base, tiny_expert

NORMALISED = (
    "task-vector-cosine",
    "sign-agreement",
    "energy-overlap",
    "norm-ratio",
    "subspace-left",
    "subspace-right",
    "cka",
    "rsa-images",
    "rsa-tokens",
    "explained-variance",
    "explained-by-average",
    "cross-agreement",
    "merged-features",
    "realigned-features",
)
OPTIONS = AffinityOptions(rank=3, lambdas=(0.0, 0.5, 1.0), tokens=4, gradient_batches=2, batch_size=3)


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


@pytest.fixture(scope="module")
def experts(base: Base) -> list[SingleTaskModel]:
    return [tiny_expert(task, base, seed) for seed, task in enumerate((SEGMENTATION, DEPTH, NORMALS), start=1)]


def test_without_names_all_measures_are_taken_that_the_arguments_serve(
    base: Base, experts: list[SingleTaskModel]
) -> None:
    images, labelled = TinyData(7), TinyData(5, (SEGMENTATION, DEPTH, NORMALS), seed=1)
    before = state_of(base.vit, *experts)
    found = affinity(experts, base, images, labelled, options=OPTIONS)
    assert list(found) == list(MEASURES)
    for name, matrix in found.items():
        assert matrix.tasks == ("segmentation", "depth", "normals")
        assert matrix.symmetric == MEASURES[name].symmetric
        assert matrix.images == {"weights": 0, "images": 7, "labels": 5}[matrix.needs]
        assert matrix.labels == (5 if matrix.needs == "labels" else 0)
        assert torch.isfinite(matrix.values).all(), name
    assert state_of(base.vit, *experts) == before
    assert list(affinity(experts, base)) == [name for name, m in MEASURES.items() if m.needs == "weights"]
