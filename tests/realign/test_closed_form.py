"""Linear surgery in closed form against plain least squares, brute force and gradient descent."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from simo_merge.models.aligners import LinearSurgeryTap
from simo_merge.realign import CalibrationFeatures
from tests.realign.degenerate import DEGENERATE, RIDGE, fitted
from tests.tiny import features, related_features


class Problem(NamedTuple):
    """The least-squares problem of one tap and task, written out token by token in float64."""

    x: Tensor  # (n, C) merged, centred in each group, scaled to unit sum of squares
    d: Tensor  # (n, C) expert minus merged, centred in each group, over the expert's deviation
    scale_in: Tensor
    scale_out: Tensor

    def loss(self, change: Tensor) -> float:
        """The regularised error of tokens -> tokens + change @ tokens, change (C, C)."""
        scaled = change.T * self.scale_in[:, None] / self.scale_out
        return float((self.d - self.x @ scaled).square().sum() + RIDGE * scaled.square().sum())

    def error(self, change: Tensor) -> float:
        """The error alone."""
        return float((self.d - self.x @ (change.T * self.scale_in[:, None] / self.scale_out)).square().sum())


def problem(found: CalibrationFeatures, task: str) -> Problem:
    merged, expert = found.merged, found.experts[task]
    xs, ys = [merged.patches[0].flatten(0, 1)], [expert.patches[0].flatten(0, 1)]
    xs += merged.prefix[0].unbind(1)
    ys += expert.prefix[0].unbind(1)
    weights = [(len(xs[0]) / len(g)) ** 0.5 for g in xs]  # a prefix token counts for all patches of its image
    x = torch.cat([w * (g.double() - g.double().mean(0)) for w, g in zip(weights, xs, strict=True)])
    y = torch.cat([w * (g.double() - g.double().mean(0)) for w, g in zip(weights, ys, strict=True)])
    deviation = ys[0].double().std(0, correction=0)
    scale_in = x.square().sum(0).sqrt()
    scale_in = torch.where(scale_in > 1e-5 * max(float(g.abs().max()) for g in xs), scale_in, 1.0)
    deviation = torch.where(deviation > 1e-6 * ys[0].abs().max(), deviation, 0.0)
    typical = deviation[deviation > 0].median() if deviation.any() else torch.tensor(1.0)
    scale_out = deviation.clamp_min(0.1 * float(typical))
    return Problem(x / scale_in, (y - x) / scale_out, scale_in, scale_out)


def full_solution(p: Problem) -> Tensor:
    """The scaled ridge solution (C, C) by least squares on data augmented with sqrt(ridge) I."""
    channels = p.x.shape[1]
    augmented = torch.cat([p.x, RIDGE**0.5 * torch.eye(channels, dtype=p.x.dtype)])
    return torch.linalg.lstsq(augmented, torch.cat([p.d, torch.zeros(channels, channels, dtype=p.d.dtype)])).solution


def unscaled(p: Problem, scaled: Tensor) -> Tensor:
    return (scaled / p.scale_in[:, None] * p.scale_out).T


def change_of(tap: LinearSurgeryTap) -> Tensor:
    return (tap.up.weight.double() @ tap.down.weight.double()).detach()


def test_full_rank_is_ridge_regression_of_the_centred_and_scaled_tokens() -> None:
    found = related_features()
    for task in ("a", "b"):
        p = problem(found, task)
        assert torch.allclose(change_of(fitted(found, task, 8)), unscaled(p, full_solution(p)), atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_reduced_rank_is_the_full_solution_projected_on_the_leading_directions_of_its_fit(rank: int) -> None:
    found = related_features(noise=1.0)
    p = problem(found, "a")
    full = full_solution(p)
    augmented = torch.cat([p.x, RIDGE**0.5 * torch.eye(8, dtype=torch.float64)])
    _, _, right = torch.linalg.svd(augmented @ full, full_matrices=False)
    truth = unscaled(p, full @ right[:rank].T @ right[:rank])
    assert torch.allclose(change_of(fitted(found, "a", rank)), truth, atol=1e-5)
    assert torch.linalg.matrix_rank(truth) == rank


def test_no_random_map_of_that_rank_does_better() -> None:
    found = related_features(noise=1.0)
    p = problem(found, "a")
    change = change_of(fitted(found, "a", 2))
    best = p.loss(change)
    down = fitted(found, "a", 2).down.weight.double().detach()
    for _ in range(50):
        near = change + torch.randn(8, 1).double() @ torch.randn(1, 2).double() @ down * 0.1
        far = torch.randn(8, 2).double() @ torch.randn(2, 8).double() * 0.3
        assert p.loss(near) > best
        assert p.loss(far) > best


def test_gradient_descent_run_long_arrives_at_the_closed_form_and_not_below() -> None:
    found = related_features(noise=1.0)
    p = problem(found, "a")
    best = p.loss(change_of(fitted(found, "a", 2)))
    reached = []
    for _ in range(3):
        a, b = (torch.randn(8, 2, dtype=torch.float64).requires_grad_() for _ in range(2))
        optimizer = torch.optim.LBFGS([a, b], max_iter=300, line_search_fn="strong_wolfe", tolerance_change=1e-14)

        def closure(a: Tensor = a, b: Tensor = b, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            scaled = a @ b.T
            loss = (p.d - p.x @ scaled).square().sum() + RIDGE * scaled.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        reached.append(float(closure()))
    assert min(reached) >= best * (1 - 1e-6)
    assert min(reached) == pytest.approx(best, rel=1e-4)


def test_the_error_falls_with_the_rank() -> None:
    found = related_features(noise=1.0)
    p = problem(found, "a")
    losses = [p.loss(change_of(fitted(found, "a", rank))) for rank in range(1, 9)]
    assert all(higher > lower for higher, lower in itertools.pairwise(losses))


def test_a_heavy_ridge_leaves_the_features_alone_but_for_their_means() -> None:
    found = related_features()
    assert change_of(fitted(found, "a", 8, ridge=1e9)).abs().max() < 1e-6


def test_offsets_carry_the_mean_of_patches_and_of_every_prefix_token_over_exactly() -> None:
    found = related_features(prefix=3)
    for task, rank in itertools.product(("a", "b"), (1, 8)):
        with torch.no_grad():
            patches, prefix = fitted(found, task, rank)(found.merged.patches[0], found.merged.prefix[0])
        expert = found.experts[task]
        assert torch.allclose(patches.mean((0, 1)), expert.patches[0].mean((0, 1)), atol=1e-5)
        assert torch.allclose(prefix.mean(0), expert.prefix[0].mean(0), atol=1e-5)


def test_a_map_of_low_rank_is_found_again() -> None:
    found = related_features(count=30, rank=3, noise=0.0)
    with torch.no_grad():
        patches, _ = fitted(found, "a", 3, ridge=1e-6)(found.merged.patches[0], found.merged.prefix[0])
    assert torch.allclose(patches, found.experts["a"].patches[0], atol=1e-3)


def test_the_units_of_a_channel_do_not_matter() -> None:
    """Huge channels, as ViT residual streams have them, get no more and no less than the others."""
    found = related_features(noise=1.0)
    units = torch.tensor([1.0, 1e4, 0.5, 1, 1, 300, 1, 10])

    def in_units(given: CalibrationFeatures) -> CalibrationFeatures:
        merged, experts = given.merged, given.experts
        return CalibrationFeatures(
            features(merged.patches[0] * units, merged.prefix[0] * units),
            {t: features(e.patches[0] * units, e.prefix[0] * units) for t, e in experts.items()},
        )

    for rank in (2, 8):
        plain, scaled = change_of(fitted(found, "a", rank)), change_of(fitted(in_units(found), "a", rank))
        assert torch.allclose(scaled / units[:, None].double() * units.double(), plain, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4, 100])
@pytest.mark.parametrize("make", DEGENERATE)
def test_degenerate_features_give_a_finite_map_no_worse_than_the_identity(
    make: Callable[[], CalibrationFeatures], rank: int
) -> None:
    found = make()
    tap = fitted(found, "a", min(rank, found.merged.patches[0].shape[-1]))
    assert all(torch.isfinite(p).all() for p in tap.parameters())
    with torch.no_grad():
        patches, prefix = tap(found.merged.patches[0], found.merged.prefix[0])
    assert torch.isfinite(patches).all()
    assert torch.isfinite(prefix).all()
    p = problem(found, "a")
    assert p.error(change_of(tap)) <= p.error(torch.zeros_like(change_of(tap))) * (1 + 1e-6)
    expert = found.experts["a"]
    scale = expert.patches[0].abs().mean((0, 1)).clamp_min(1e-3)
    assert ((patches.mean((0, 1)) - expert.patches[0].mean((0, 1))) / scale).abs().max() < 1e-3


@pytest.mark.parametrize("deviation", [0.0, 1e-4])
def test_an_expert_channel_that_hardly_varies_does_not_use_up_the_rank(deviation: float) -> None:
    x = torch.randn(40, 20, 256)
    towards = torch.randn(256).sign()
    y = x + 2 * x[..., :1] * towards  # rank 1, and 4/5 of the variance of every channel but the first
    y[..., 1] = 0.5 + deviation * torch.randn(40, 20)
    found = CalibrationFeatures(features(x), {"a": features(y)})
    with torch.no_grad():
        patches, _ = fitted(found, "a", rank=1)(x, torch.zeros(40, 0, 256))
    unexplained = (patches - y)[..., 2:].square().mean((0, 1)) / y[..., 2:].var((0, 1))
    assert unexplained.mean() < 0.1
