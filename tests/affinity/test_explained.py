"""Explained variance between experts' features, against ridge regression written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from simo_merge.affinity.explained import Fit, explained, explained_by_average, explained_by_each, explained_by_pairs
from simo_merge.affinity.seen import Seen
from tests.tiny import features

FIT = Fit(rank=None, ridge=0.05, folds=3)


def seen(**patches: Tensor) -> dict[str, Seen]:
    return {task: Seen(features(p), (p.mean(1),)) for task, p in patches.items()}


def plain_held_out(x: Tensor, y: Tensor, ridge: float, folds: int) -> float:
    """Patches alone: y - x regressed on x, scaled, with the means carried over; errors in units of y's deviation."""
    source, target = x.double().numpy(), y.double().numpy()
    count = len(source)
    scale = target.reshape(-1, target.shape[-1]).std(0)
    scale = np.maximum(scale, 0.1 * np.sort(scale)[(len(scale) - 1) // 2])
    error = 0.0
    for k in range(folds):
        test = np.zeros(count, dtype=bool)
        test[count * k // folds : count * (k + 1) // folds] = True
        a, b = (v[~test].reshape(-1, v.shape[-1]) for v in (source, target))
        means = a.mean(0), b.mean(0)
        a, b = a - means[0], b - means[1]
        unit = np.sqrt((a**2).sum(0))
        gram = (a / unit).T @ (a / unit) + ridge * np.eye(a.shape[1])
        weights = np.linalg.solve(gram, (a / unit).T @ (b - a)) / unit[:, None]
        held, wanted = (v[test].reshape(-1, v.shape[-1]) for v in (source, target))
        predicted = (held - means[0]) @ (np.eye(a.shape[1]) + weights) + means[1]
        error += (((wanted - predicted) / scale) ** 2).sum()
    whole = target.reshape(-1, target.shape[-1])
    return 1 - error / (((whole - whole.mean(0)) / scale) ** 2).sum()


def related() -> tuple[Tensor, Tensor]:
    x = torch.randn(9, 7, 5) + 1
    return x, x + 0.5 * x @ torch.randn(5, 5) + 0.3 * torch.randn(9, 7, 5) + torch.randn(5)


def test_a_map_from_one_expert_to_another_is_ridge_regression_on_held_out_images() -> None:
    x, y = related()
    found = explained_by_each(seen(a=x, b=y), FIT)[0]
    assert float(found[0, 1]) == pytest.approx(plain_held_out(x, y, 0.05, 3), abs=1e-5)
    assert float(found[1, 0]) == pytest.approx(plain_held_out(y, x, 0.05, 3), abs=1e-5)
    assert found.diagonal().tolist() == [1.0, 1.0]


def test_the_mean_of_both_predicts_each_as_ridge_regression_does() -> None:
    x, y = related()
    found = explained_by_average(seen(a=x, b=y), FIT)[0]
    assert float(found[0, 1]) == pytest.approx(plain_held_out((x + y) / 2, y, 0.05, 3), abs=1e-5)
    assert float(found[1, 0]) == pytest.approx(plain_held_out((x + y) / 2, x, 0.05, 3), abs=1e-5)


def test_equal_features_are_explained_entirely_and_independent_ones_not_at_all() -> None:
    x = torch.randn(9, 7, 5)
    same = explained_by_each(seen(a=x, b=x.clone()), FIT)[0]
    assert same == pytest.approx(1.0, abs=1e-6)
    assert explained_by_average(seen(a=x, b=x.clone()), FIT)[0] == pytest.approx(1.0, abs=1e-6)
    apart = explained_by_each(seen(a=x, b=torch.randn(9, 7, 5)), FIT)[0]
    assert float(apart[0, 1]) < 0.05


def test_merged_features_count_before_and_after_the_map_each_for_its_own_task() -> None:
    x, y = related()
    shifted = x + 2  # of a merge; its map to x is the identity and an offset
    before, after = explained_by_pairs(iter([(("a", "b"), features(shifted))]), seen(a=x, b=y), FIT)
    spread = (((x - x.mean((0, 1))) / x.flatten(0, 1).std(0, correction=0)) ** 2).sum()
    off = ((2 / x.flatten(0, 1).std(0, correction=0)) ** 2).sum() * 63
    assert float(before[0][1, 0]) == pytest.approx(float(1 - off / spread), rel=1e-4)  # what b does to a
    assert float(after[0][1, 0]) == pytest.approx(1.0, abs=1e-6)
    assert float(after[0][0, 1]) == pytest.approx(plain_held_out(shifted, y, 0.05, 3), abs=1e-5)


def test_pairs_that_were_not_merged_stay_unknown() -> None:
    x, y = related()
    before, _ = explained_by_pairs(iter([]), seen(a=x, b=y), FIT)
    assert before[0][0, 1].isnan()


def test_a_lower_rank_explains_no_more() -> None:
    x, y = related()
    full, low = (explained(features(x), {"b": features(y)}, Fit(r, 0.05, 3)).after["b"][0] for r in (None, 1))
    assert low < full


def test_one_image_says_nothing() -> None:
    found = explained_by_each(seen(a=torch.randn(1, 7, 5), b=torch.randn(1, 7, 5)), FIT)[0]
    assert found[0, 1].isnan()
