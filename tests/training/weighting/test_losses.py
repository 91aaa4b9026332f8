"""Weightings of losses: each against its formula, written out in numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simo_merge.errors import SimoError
from simo_merge.training.weighting import (
    WEIGHTINGS,
    AutoLambda,
    Dwa,
    Equal,
    Famo,
    Geometric,
    GradNorm,
    LossWeighting,
    RandomWeights,
    ScaleInvariant,
    Uncertainty,
    describe_weighting,
    weighting_named,
)
from simo_merge.training.weighting.adam import adam_step
from tests.training.weighting.steps import Toy

GRADIENTS = [[1.0, 2.0, -1.0, 0.5], [0.0, -1.0, 3.0, 1.0], [-2.0, 0.5, 0.0, 1.0]]
LOSSES = [2.0, 0.5, 8.0]


@pytest.fixture
def toy() -> Toy:
    return Toy(GRADIENTS, LOSSES)


def weigh(method: LossWeighting, losses: list[float], state: dict[str, Any], **options: Any) -> list[float]:
    return method.backward(Toy(GRADIENTS, losses).step(**options), state).tolist()


# -- what all share ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if issubclass(WEIGHTINGS[name], LossWeighting)])
def test_the_gradients_are_those_of_the_weighted_sum(toy: Toy, name: str) -> None:
    method = weighting_named(name)
    weights = method.backward(toy.step(other=toy.losses, extra=3 * toy.shared[0].sum()), method.initial(3))
    expected = weights @ torch.tensor(GRADIENTS, dtype=torch.float64) + torch.tensor([3.0, 3, 0, 0])
    torch.testing.assert_close(toy.direction.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat([p.grad for p in toy.own]).double(), weights, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(WEIGHTINGS) - {"auto-lambda", "si", "nash-mtl", "cagrad"}))
def test_one_task_has_the_weight_one(name: str) -> None:
    toy, method = Toy([[3.0, -4.0, 1.0, 0.0]], [2.5]), weighting_named(name)
    assert method.backward(toy.step(), method.initial(1)).tolist() == pytest.approx([1.0])
    assert toy.direction.tolist() == pytest.approx([3.0, -4.0, 1.0, 0.0])


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_task_without_a_label_in_the_batch_does_no_harm(name: str) -> None:
    toy, method = Toy([[1.0, 2.0, 3.0, 4.0], [0.0] * 4, [1.0, 0.0, 0.0, -1.0]], [1.0, 0.0, 2.0]), weighting_named(name)
    state = method.initial(3)
    for number in range(3):
        step = toy.step(number, epoch_steps=1, other=toy.losses)
        weights = method.backward(step, state)
        method.after(step, state)
        assert weights.isfinite().all()
        assert toy.direction.isfinite().all()
        assert toy.direction.norm() > 0
    assert all(tensor.isfinite().all() for tensor in state.values())


# -- formulas ---------------------------------------------------------------------------------------------------


def test_equal_weights_are_ones(toy: Toy) -> None:
    assert Equal().backward(toy.step(), {}).tolist() == [1, 1, 1]


def test_random_weights_sum_to_the_tasks_and_follow_the_generator(toy: Toy) -> None:
    drawn = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).numpy()
    expected = 3 * np.exp(drawn) / np.exp(drawn).sum()
    assert RandomWeights().backward(toy.step(seed=7), {}).tolist() == pytest.approx(expected)


def test_scale_invariant_weights_are_the_gradient_of_the_sum_of_logarithms(toy: Toy) -> None:
    ScaleInvariant().backward(toy.step(), {})
    found = toy.direction.clone()
    toy.shared[0].grad = toy.shared[1].grad = None
    toy.losses().log().sum().backward()
    torch.testing.assert_close(found, toy.direction)


def test_geometric_weights_are_the_gradient_of_the_geometric_mean(toy: Toy) -> None:
    Geometric().backward(toy.step(), {})
    found = toy.direction.clone()
    toy.shared[0].grad = toy.shared[1].grad = None
    (3 * toy.losses().prod() ** (1 / 3)).backward()
    torch.testing.assert_close(found, toy.direction)


def test_geometric_weights_leave_out_a_loss_of_zero() -> None:
    assert weigh(Geometric(), [4.0, 0.0, 1.0], {}) == pytest.approx([0.5, 0.0, 2.0])


# -- uncertainty ------------------------------------------------------------------------------------------------


def test_uncertainty_learns_the_logarithms_of_the_losses() -> None:
    """For constant losses Σ exp(-s) L + s is smallest at s = log L."""
    method = Uncertainty(lr=0.05)
    state = method.initial(3)
    for _ in range(800):
        step = Toy(GRADIENTS, LOSSES).step()
        method.backward(step, state)
        method.after(step, state)
    assert state["log_variance"].tolist() == pytest.approx(np.log(LOSSES), abs=0.02)


def test_uncertainty_follows_adam_on_its_objective(toy: Toy) -> None:
    method = Uncertainty(lr=0.3)
    state = method.initial(3)
    variances = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    adam = torch.optim.Adam([variances], lr=0.3)
    for _ in range(4):
        weights = method.backward(step := toy.step(), state)
        assert weights.tolist() == pytest.approx(torch.exp(-variances).tolist())
        method.after(step, state)
        adam.zero_grad()
        (torch.exp(-variances) * step.losses.detach().double() + variances).sum().backward()
        adam.step()


# -- dynamic weight average -------------------------------------------------------------------------------------


def test_dynamic_weights_compare_the_means_of_the_last_two_epochs() -> None:
    method, rng = Dwa(temperature=1.5), np.random.default_rng(0)
    state = method.initial(3)
    losses = rng.uniform(0.5, 2, size=(12, 3))
    means = losses.reshape(4, 3, 3).mean(axis=1)
    for number, row in enumerate(losses):
        weights = weigh(method, row.tolist(), state, number=number, epoch_steps=3)
        epoch = number // 3
        ratio = means[epoch - 1] / means[epoch - 2] if epoch >= 2 else np.ones(3)
        expected = 3 * np.exp(ratio / 1.5) / np.exp(ratio / 1.5).sum()
        assert weights == pytest.approx(expected, rel=1e-6), number


# -- gradient normalisation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["last", "encoder"])
def test_gradnorm_moves_down_its_objective(layer: str) -> None:
    """Against autograd on Σ |w_t n_t - target| and torch's Adam, with the target held constant."""
    method = GradNorm(alpha=1.5, lr=0.1, layer=layer)
    state = method.initial(3)
    rows = np.array(GRADIENTS)[:, 2:] if layer == "last" else np.array(GRADIENTS)
    norms = torch.tensor(np.linalg.norm(rows, axis=1))
    weights = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    adam = torch.optim.Adam([weights], lr=0.1)
    for losses in (LOSSES, [1.5, 0.5, 2.0], [1.0, 0.4, 1.0]):
        assert weigh(method, losses, state) == pytest.approx(weights.tolist(), rel=1e-6)
        relative = torch.tensor(losses, dtype=torch.float64) / torch.tensor(LOSSES, dtype=torch.float64)
        target = (weights * norms).mean().detach() * (relative / relative.mean()) ** 1.5
        adam.zero_grad()
        (weights * norms - target).abs().sum().backward()
        adam.step()
        expected = weights.detach() * 3 / weights.detach().sum()
        torch.testing.assert_close(state["weights"], expected, rtol=1e-6, atol=0)
        # Adam goes on from its own numbers in both: the scaling is put back for the next round.
        weights.data.copy_(expected)


def test_gradnorm_compares_a_task_with_its_first_loss_that_was_measured() -> None:
    method = GradNorm()
    state = method.initial(3)
    weigh(method, [0.0, *LOSSES[1:]], state)  # no label in the first batch
    weigh(method, LOSSES, state)
    assert state["first"].tolist() == pytest.approx(LOSSES)


# -- FAMO -------------------------------------------------------------------------------------------------------


def test_famo_weighs_relative_improvement() -> None:
    method = Famo()
    shares = torch.softmax(torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64), 0).numpy()
    found = weigh(method, LOSSES, {"logits": torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)})
    expected = shares / np.array(LOSSES)
    assert found == pytest.approx(3 * expected / expected.sum())


def test_famo_moves_its_logits_by_what_the_step_did() -> None:
    """Against autograd through softmax and torch's Adam with its L2 decay, over three steps."""
    method = Famo(lr=0.2, decay=0.05)
    toy, state = Toy(GRADIENTS, LOSSES), method.initial(3)
    logits = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    adam = torch.optim.Adam([logits], lr=0.2, weight_decay=0.05)
    for _ in range(3):
        method.backward(step := toy.step(), state)
        with torch.no_grad():
            toy.shared[0].sub_(0.05 * toy.direction[:2])
        method.after(step, state)
        improved = step.losses.detach().double().log() - toy.losses().detach().double().log()
        adam.zero_grad()
        torch.softmax(logits, 0).backward(improved)
        adam.step()
        torch.testing.assert_close(state["logits"], logits.detach(), rtol=1e-5, atol=1e-8)


# -- Auto-lambda ------------------------------------------------------------------------------------------------


class Curved:
    """Losses that are no planes: L_t = <g_t, x> + ‖x - a_t‖² / 2 + own²; the second batch has other minima."""

    def __init__(self) -> None:
        self.toy = Toy(GRADIENTS, LOSSES)
        generator = torch.Generator().manual_seed(3)
        self.first, self.second = (torch.randn(3, 4, generator=generator) for _ in range(2))

    def losses(self, minima: torch.Tensor) -> torch.Tensor:
        own = torch.cat(list(self.toy.own))
        return self.toy.losses() + (torch.cat(self.toy.shared) - minima).square().sum(1) / 2 + (own - 1) ** 2


def test_auto_lambda_finds_the_gradient_of_the_second_batch_for_its_weights() -> None:
    """Against -η <∇_θ' Σ L(second), ∇_θ L_t> by autograd, with a rate for the encoder and one for decoders."""
    from dataclasses import replace

    curved, rates = Curved(), (0.1, 0.3)
    parameters = [*curved.toy.shared, *curved.toy.own]
    eta = torch.cat([torch.full((4,), rates[0]), torch.full((3,), rates[1])]).double()

    def flat(loss: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad(loss, parameters, retain_graph=True)
        return torch.cat([part.reshape(-1) for part in found]).double()

    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    rows = torch.stack([flat(loss) for loss in curved.losses(curved.first)])
    before = [p.detach().clone() for p in parameters]
    moved = torch.cat([p.detach().reshape(-1) for p in parameters]) - (eta * (weights @ rows)).float()
    for parameter, part in zip(parameters, moved.split([p.numel() for p in parameters]), strict=True):
        parameter.data.copy_(part.view_as(parameter))
    ahead = flat(curved.losses(curved.second).sum())
    for parameter, value in zip(parameters, before, strict=True):
        parameter.data.copy_(value)
    expected = -(rows @ (eta * ahead))

    def again(exact: bool = False) -> torch.Tensor:
        assert exact, "differences of losses need float32"
        with torch.no_grad():
            return curved.losses(curved.first)

    step = replace(curved.toy.step(rates=rates), losses=curved.losses(curved.first), again=again)
    step = replace(step, other=lambda: curved.losses(curved.second))
    found = AutoLambda()._gradient(step, weights)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    assert all(torch.equal(p, value) for p, value in zip(parameters, before, strict=True))
    step.losses.sum().backward()  # the graph has survived


def test_auto_lambda_steps_by_adam_and_never_below_zero(toy: Toy) -> None:
    method = AutoLambda(start=0.1, lr=0.25)
    found = method.backward(toy.step(other=toy.losses), method.initial(3))
    # Adam's first step is the rate times the sign of the gradient: -η Σ_s <g_s, g_t> - η_own.
    gram = np.array(GRADIENTS) @ np.array(GRADIENTS).T
    rising = -(0.1 * gram.sum(axis=0) + 0.2)
    assert found.tolist() == pytest.approx([0.35 if slope < 0 else 0.0 for slope in rising], abs=1e-6)


# -- Adam -------------------------------------------------------------------------------------------------------


@given(
    gradients=st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=2), min_size=1, max_size=6),
    decay=st.sampled_from([0.0, 0.1]),
)
def test_adam_is_that_of_torch(gradients: list[list[float]], decay: float) -> None:
    state = {"x": torch.tensor([0.5, -1.0], dtype=torch.float64)}
    parameter = torch.nn.Parameter(state["x"].clone())
    adam = torch.optim.Adam([parameter], lr=0.1, weight_decay=decay)
    for gradient in gradients:
        adam_step(state, "x", torch.tensor(gradient, dtype=torch.float64), 0.1, decay)
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        adam.step()
    torch.testing.assert_close(state["x"], parameter.detach(), rtol=1e-9, atol=1e-9)


# -- the registry -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_says_what_it_is(name: str) -> None:
    facts = describe_weighting(name)
    assert facts.purpose.endswith((".", "1.", "0."))
    assert weighting_named(name, facts.options) == weighting_named(name)
    assert weighting_named(name).name == name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("banana", {}, "unknown weighting 'banana'; known: equal, uncertainty, dwa, rlw"),
        ("dwa", {"heat": 2}, "dwa has no option heat; its options are temperature"),
        ("equal", {"x": 1}, "equal has no option x; it has none"),
        ("dwa", {"temperature": 0}, "the temperature of dwa must be a number, above 0; got 0"),
        ("dwa", {"temperature": "hot"}, "the temperature of dwa must be a number"),
        ("uncertainty", {"lr": math.nan}, "the lr of uncertainty must be a number"),
        ("gradnorm", {"alpha": -1}, "the alpha of gradnorm must be a number, 0 or more"),
        ("gradnorm", {"layer": "first"}, "unknown layer 'first' of gradnorm; known: last, encoder"),
        ("famo", {"decay": -0.1}, "the decay of famo must be a number, 0 or more"),
        ("auto-lambda", {"start": True}, "the start of auto-lambda must be a number, above 0; got True"),
        ("cagrad", {"c": 1.0}, "the c of cagrad must be below 1"),
        ("mgda", {"normalise": "l1"}, "unknown normalise 'l1' of mgda; known: none, l2, loss"),
        ("nash-mtl", {"every": 0}, "the every of nash-mtl must be a whole number, 1 or more; got 0"),
        ("aligned-mtl", {"scale": "max"}, "unknown scale 'max' of aligned-mtl; known: min, median, rmse"),
    ],
)
def test_what_a_weighting_does_not_take_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        weighting_named(name, options)
