"""CKA and RSA against plain versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial import distance
from torch import Tensor

from simo_merge.affinity.seen import Seen
from simo_merge.affinity.similarity import cka, rsa_images, rsa_tokens
from tests.tiny import features


def seen(*patches: Tensor) -> dict[str, Seen]:
    """What encoders make of images: one tap, patches (N, k, C) each."""
    return {f"t{i}": Seen(features(p), (p.mean(1),)) for i, p in enumerate(patches)}


def spearman_of_distances(x: Tensor, y: Tensor) -> float:
    def distances(points: Tensor) -> np.ndarray:
        values = points.double().numpy()
        return distance.pdist((values - values.mean(0)) / values.std(0), "correlation")

    return float(stats.spearmanr(distances(x), distances(y)).statistic)


def test_cka_is_the_cosine_of_centred_gram_matrices() -> None:
    x, y = torch.randn(5, 8, 6), torch.randn(5, 8, 4)
    y[..., :2] += x[..., :2]
    a, b = (p.flatten(0, 1).double().numpy() for p in (x, y))
    centre = np.eye(40) - 1 / 40
    k, m = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    found = cka(seen(x, y))[0]
    assert float(found[0, 1]) == pytest.approx((k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m))
    assert found[0, 1] == found[1, 0]


def test_cka_does_not_see_a_rotation_and_one_scale() -> None:
    x = torch.randn(5, 8, 6)
    turn, _ = torch.linalg.qr(torch.randn(6, 6))
    assert cka(seen(x, 3 * x @ turn + 1))[0] == pytest.approx(1.0, abs=1e-5)
    stretched = x * torch.tensor([10.0, 1, 1, 1, 1, 1])
    assert float(cka(seen(x, stretched))[0][0, 1]) < 0.9


def test_rsa_of_images_ranks_distances_of_their_means() -> None:
    x = torch.randn(9, 5, 7)
    y = x + torch.randn(9, 5, 7)
    found = rsa_images(seen(x, y))[0]
    assert float(found[0, 1]) == pytest.approx(spearman_of_distances(x.mean(1), y.mean(1)), abs=1e-5)
    assert found.diagonal() == pytest.approx(1.0)


def test_rsa_of_tokens_ranks_distances_of_patches() -> None:
    x = torch.randn(4, 10, 7)  # fewer than are drawn
    y = x + torch.randn(4, 10, 7)
    found = rsa_tokens(seen(x, y))[0]
    assert float(found[0, 1]) == pytest.approx(spearman_of_distances(x.flatten(0, 1), y.flatten(0, 1)), abs=1e-5)


def test_tokens_are_drawn_alike_for_all_encoders_and_every_time() -> None:
    x = torch.randn(20, 40, 5)  # 800 tokens, more than are drawn
    found = rsa_tokens(seen(x, x))[0]
    assert found == pytest.approx(1.0)
    y = x + torch.randn_like(x)
    assert torch.equal(rsa_tokens(seen(x, y))[0], rsa_tokens(seen(x, y))[0])


def test_one_huge_channel_does_not_decide_for_the_others() -> None:
    x, y = torch.randn(12, 3, 6), torch.randn(12, 3, 6)
    x[..., 0] = y[..., 0] = 1000 * torch.randn(12, 1)
    assert float(rsa_images(seen(x, y))[0][0, 1]) < 0.7


def test_a_channel_that_never_varies_and_two_images_are_no_mistake() -> None:
    x = torch.randn(2, 3, 4)
    x[..., 0] = 5.0
    assert rsa_images(seen(x, torch.randn(2, 3, 4)))[0].isnan().all()  # one distance orders nothing
    assert rsa_tokens(seen(x, x))[0] == pytest.approx(1.0)
