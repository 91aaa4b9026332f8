"""Gradient methods: each against its formula, or against the conditions that its solution must meet."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.training.weighting import (
    WEIGHTINGS,
    AlignedMtl,
    CaGrad,
    GradDrop,
    GradientMethod,
    GramianMethod,
    ImtlG,
    Mgda,
    NashMtl,
    PcGrad,
    UpGrad,
    weighting_named,
)
from simo_merge.training.weighting.cagrad import worst_mixture
from simo_merge.training.weighting.quadratic import nonnegative_minimum
from tests.training.weighting.steps import Toy

NAMES = [name for name in WEIGHTINGS if issubclass(WEIGHTINGS[name], GradientMethod)]
seeds = st.integers(0, 10_000)


def jacobian(seed: int, tasks: int = 3, size: int = 6, spread: float = 3.0) -> Tensor:
    """Random gradients (T, D), of lengths up to the square of `spread` apart; half of all pairs conflict."""
    generator = torch.Generator().manual_seed(seed)
    lengths = spread ** (2 * torch.rand(tasks, 1, generator=generator) - 1)
    return lengths * torch.randn(tasks, size, generator=generator, dtype=torch.float64)


def weights_of(method: GramianMethod, rows: Tensor, losses: Tensor | None = None) -> Tensor:
    losses = torch.ones(len(rows), dtype=torch.float64) if losses is None else losses
    return method.weights(rows @ rows.T, losses, method.initial(len(rows)))


# -- what all share ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"graddrop", "pcgrad"}))
def test_the_encoder_gets_the_weighted_sum_and_decoders_their_own(name: str) -> None:
    rows = jacobian(1).float()
    toy, method = Toy(rows.tolist(), [1.0, 2.0, 3.0], own=5.0), weighting_named(name)
    weights = method.backward(toy.step(extra=2 * toy.shared[1].sum()), method.initial(3))
    expected = weights.float() @ rows + torch.tensor([0.0, 0, 2, 2, 2, 2])
    torch.testing.assert_close(toy.direction, expected, rtol=1e-5, atol=1e-5)
    assert [float(p.grad) for p in toy.own] == [5.0] * 3


@pytest.mark.parametrize("name", NAMES)
def test_orthogonal_gradients_of_one_length_are_added(name: str) -> None:
    toy, method = Toy((2 * torch.eye(3, 4)).tolist(), [1.0, 1.0, 1.0]), weighting_named(name)
    method.backward(toy.step(), method.initial(3))
    shares = toy.direction / toy.direction[0]
    assert shares.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0])
    if name not in ("nash-mtl", "cagrad"):  # their lengths are their own
        assert float(toy.direction[0]) == pytest.approx(2.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_no_number_is_handed_on(name: str, value: float) -> None:
    toy, method = Toy([[1.0, 2, 3, 4], [value, 0, 0, 0], [0, 1, 0, 1]], [1.0, 1.0, 1.0]), weighting_named(name)
    method.backward(toy.step(), method.initial(3))
    assert not toy.direction.isfinite().all()


@pytest.mark.parametrize("name", ["mgda", "upgrad", "nash-mtl"])
@given(seed=seeds)
def test_these_directions_hurt_no_task(name: str, seed: int) -> None:
    rows = jacobian(seed)
    direction = weights_of(weighting_named(name), rows) @ rows
    assert (rows @ direction > -1e-6 * rows.norm() ** 2).all()


@pytest.mark.parametrize("name", ["pcgrad", "graddrop", "imtl-g", "aligned-mtl"])
def test_a_missing_torchjd_is_said_before_anything_is_trained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(SimoError, match=rf'{name} needs torchjd; install it with pip install "simo_merge\[joint\]"'):
        weighting_named(name).initial(3)


@pytest.mark.parametrize("name", ["mgda", "cagrad", "nash-mtl", "upgrad"])
def test_the_others_do_without_torchjd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    assert weights_of(weighting_named(name), jacobian(0)).isfinite().all()


# -- quadratic programs -----------------------------------------------------------------------------------------


@given(seed=seeds, tasks=st.integers(1, 9), rank=st.integers(1, 9), on_simplex=st.booleans())
def test_a_quadratic_minimum_meets_the_conditions_of_karush_kuhn_and_tucker(
    seed: int, tasks: int, rank: int, on_simplex: bool
) -> None:
    rows = jacobian(seed, tasks, rank)
    gramian = rows @ rows.T
    linear = gramian @ torch.randn(tasks, dtype=torch.float64)  # in the range of G, so there is a minimum
    found = nonnegative_minimum(gramian, linear, on_simplex)
    slope = gramian @ found + linear
    scale = 1e-7 * (1 + float(gramian.abs().max()) + float(linear.abs().max()))
    assert (found >= 0).all()
    if on_simplex:
        assert float(found.sum()) == pytest.approx(1.0)
        slope = slope - slope[found > 0].mean()
    assert slope.min() > -scale
    assert slope[found > 0].abs().max() < scale if (found > 0).any() else True


# -- MGDA -------------------------------------------------------------------------------------------------------


@given(seed=seeds, tasks=st.integers(2, 6))
def test_mgda_finds_the_shortest_convex_combination(seed: int, tasks: int) -> None:
    """d is the shortest point of the hull if and only if <g_t, d> >= ‖d‖² for all t."""
    rows = jacobian(seed, tasks)
    weights = weights_of(Mgda(), rows) / tasks
    direction = weights @ rows
    assert float(weights.sum()) == pytest.approx(1.0)
    assert (weights >= 0).all()
    assert (rows @ direction >= direction @ direction - 1e-9 * rows.norm() ** 2).all()


@given(seed=seeds)
def test_mgda_of_two_tasks_has_the_closed_form(seed: int) -> None:
    first, second = jacobian(seed, 2)
    share = float(((second - first) @ second / (first - second).square().sum()).clamp(0, 1))
    assert (weights_of(Mgda(), torch.stack([first, second])) / 2).tolist() == pytest.approx([share, 1 - share])


def test_mgda_agrees_with_the_frank_wolfe_steps_of_torchjd() -> None:
    from torchjd.aggregation import MGDA

    rows = jacobian(4, 4)
    theirs = MGDA(epsilon=1e-9, max_iters=20_000)(rows)
    torch.testing.assert_close(weights_of(Mgda(), rows) @ rows / 4, theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("normalise", ["l2", "loss", "loss+"])
def test_mgda_normalises_while_it_looks_for_its_weights(normalise: str) -> None:
    rows, losses = jacobian(5), torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    size = {"l2": rows.norm(dim=1), "loss": losses, "loss+": losses * rows.norm(dim=1)}[normalise]
    expected = weights_of(Mgda(), rows / size[:, None])
    torch.testing.assert_close(weights_of(Mgda(normalise), rows, losses), expected, rtol=1e-6, atol=1e-9)


# -- UPGrad -----------------------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(seed=seeds, tasks=st.integers(2, 5))
def test_upgrad_adds_the_projections_onto_the_cone_that_hurts_nobody(seed: int, tasks: int) -> None:
    """Each projection by Dykstra's alternating projections onto the half-spaces <g_s, d> >= 0."""
    rows = jacobian(seed, tasks, spread=1.5)
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for row in rows:
        point, corrections = row.clone(), torch.zeros_like(rows)
        for _ in range(300):
            for index, normal in enumerate(rows):
                wanted = point + corrections[index]
                point = wanted - normal * min(float(normal @ wanted), 0.0) / (normal @ normal)
                corrections[index] = wanted - point
        total += point
    torch.testing.assert_close(weights_of(UpGrad(), rows) @ rows, total, rtol=1e-3, atol=2e-3 * float(rows.norm()))


# -- CAGrad -----------------------------------------------------------------------------------------------------


@given(seed=seeds, c=st.sampled_from([0.1, 0.4, 0.9]))
def test_cagrad_of_two_tasks_is_the_best_on_a_fine_grid(seed: int, c: float) -> None:
    rows = jacobian(seed, 2)
    mean = rows.mean(dim=0)
    radius = c * float(mean.norm())
    gramian = rows @ rows.T
    found, _ = worst_mixture(gramian, rows @ mean, radius)
    share = np.linspace(0, 1, 20_001)
    mixtures = share[:, None] * rows[0].numpy() + (1 - share)[:, None] * rows[1].numpy()
    objective = mixtures @ mean.numpy() + radius * np.linalg.norm(mixtures, axis=1)
    ours = found @ rows
    assert float(ours @ mean) + radius * float(ours.norm()) <= objective.min() + 1e-7 * float(rows.norm()) ** 2


@given(seed=seeds, tasks=st.integers(2, 6))
def test_cagrad_stays_in_its_ball_and_reaches_the_bound_of_its_dual(seed: int, tasks: int) -> None:
    """Primal and dual objective meet, so neither can be better: min_t <g_t, d> = min_w <g_w, g_0> + r ‖g_w‖."""
    rows, c = jacobian(seed, tasks, size=8), 0.4
    mean = rows.mean(dim=0)
    direction = weights_of(CaGrad(c), rows) @ rows / tasks
    assert float((direction - mean).norm()) == pytest.approx(c * float(mean.norm()))
    found, length = worst_mixture(rows @ rows.T, rows @ mean, c * float(mean.norm()))
    dual = float(found @ rows @ mean) + c * float(mean.norm()) * length
    assert float((rows @ direction).min()) == pytest.approx(dual, abs=1e-6 * float(rows.norm()) ** 2)


def test_cagrad_without_a_radius_is_the_sum() -> None:
    assert weights_of(CaGrad(0.0), jacobian(0)).tolist() == [1, 1, 1]


def test_cagrad_survives_gradients_that_cancel() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert weights_of(CaGrad(), rows).isfinite().all()
    assert weights_of(CaGrad(), torch.stack([rows[0], -rows[0]])).tolist() == [1, 1]


# -- Nash-MTL ---------------------------------------------------------------------------------------------------


@given(seed=seeds, tasks=st.integers(1, 12), spread=st.sampled_from([1.0, 30.0]))
def test_nash_bargaining_meets_its_condition(seed: int, tasks: int, spread: float) -> None:
    """G α = 1 / α, with α > 0; the step then has the length √T."""
    rows = jacobian(seed, tasks, 40, spread)
    alpha = weights_of(NashMtl(), rows)
    assert (alpha > 0).all()
    torch.testing.assert_close(
        (rows @ rows.T @ alpha) * alpha, torch.ones(tasks, dtype=torch.float64), rtol=1e-6, atol=0
    )
    assert float((alpha @ rows).norm()) == pytest.approx(tasks**0.5)


def test_nash_bargaining_survives_opposite_gradients() -> None:
    row = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    alpha = weights_of(NashMtl(), torch.stack([row, -row]))
    assert alpha.isfinite().all()
    assert alpha[0] == pytest.approx(float(alpha[1]))


def test_nash_keeps_its_weights_as_long_as_it_is_told() -> None:
    method = NashMtl(every=3)
    state = method.initial(3)
    losses = torch.ones(3, dtype=torch.float64)
    found = [method.weights(jacobian(s) @ jacobian(s).T, losses, state).tolist() for s in range(4)]
    assert found[0] == found[1] == found[2] != found[3]


# -- those of TorchJD -------------------------------------------------------------------------------------------


def test_pcgrad_projects_in_the_order_that_it_draws() -> None:
    rows = jacobian(8)
    torch.manual_seed(3)
    found = weights_of(PcGrad(), rows) @ rows
    torch.manual_seed(3)
    expected = torch.zeros_like(rows[0])
    for index, row in enumerate(rows):
        left = row.clone()
        for other in torch.randperm(3).tolist():
            if other != index and left @ rows[other] < 0:
                left -= (left @ rows[other]) / (rows[other] @ rows[other]) * rows[other]
        expected += left
    torch.testing.assert_close(found, expected)


@given(seed=seeds)
def test_imtl_g_projects_equally_onto_all_gradients(seed: int) -> None:
    rows = jacobian(seed)
    weights = weights_of(ImtlG(), rows)
    projections = rows / rows.norm(dim=1, keepdim=True) @ (weights @ rows)
    assert float(weights.sum()) == pytest.approx(3.0)
    torch.testing.assert_close(projections, projections.mean().expand(3), rtol=1e-6, atol=1e-6)


@given(seed=seeds)
def test_aligned_mtl_gives_the_principal_components_the_smallest_length(seed: int) -> None:
    """The aligned gradients B J are orthogonal and as long as the smallest singular value of J."""
    rows = jacobian(seed)
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    expected = values[-1] * (left @ right).sum(dim=0)
    torch.testing.assert_close(weights_of(AlignedMtl(), rows) @ rows, expected, rtol=1e-6, atol=1e-6)
    scaled = (values.square().mean()).sqrt() * (left @ right).sum(dim=0)
    torch.testing.assert_close(weights_of(AlignedMtl("rmse"), rows) @ rows, scaled, rtol=1e-6, atol=1e-6)


def test_graddrop_keeps_one_sign_a_coordinate_as_often_as_its_purity_says() -> None:
    rows = torch.tensor([[3.0], [-1.0], [2.0]]).repeat(1, 20_000)
    method = GradDrop()
    direction, _ = method.combine(rows, torch.ones(3, dtype=torch.float64), method.initial(3))
    assert set(direction.tolist()) == {5.0, -1.0}
    assert float((direction > 0).float().mean()) == pytest.approx((1 + 4 / 6) / 2, abs=0.01)
