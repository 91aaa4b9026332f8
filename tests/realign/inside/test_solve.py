"""The change of one layer in closed form, against an explicit least-squares problem in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from simo_merge.realign.inside.solve import apply, layer_moments, solve_linear, solve_scale

PREFIX, WEIGHT = 2, 3.0


def sample(inputs: int = 6, outputs: int = 4) -> tuple[Tensor, Tensor]:
    """Inputs (5, 7 tokens, D) with a mean and unequal deviations, and what is wanted (5, 7, C)."""
    read = torch.randn(5, 7, inputs, dtype=torch.float64) * torch.arange(1, inputs + 1) + 2
    return read, read @ torch.randn(inputs, outputs, dtype=torch.float64) + torch.randn(5, 7, outputs) + 1


def explicit(read: Tensor, wanted: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) by QR of the rows themselves, each as often as it counts, and the ridge's rows."""
    weights = torch.ones(7, dtype=torch.float64)
    weights[:PREFIX] = WEIGHT
    root = weights.sqrt().repeat(5)[:, None]
    rows, targets = read.flatten(0, 1), wanted.flatten(0, 1)
    mean = (root.square() * rows).sum(0) / root.square().sum()
    scale = ((root * (rows - mean)).square().sum(0)).sqrt()
    ones = torch.ones(len(rows), 1, dtype=torch.float64)
    penalty = torch.cat([torch.diag(ridge**0.5 * scale), torch.zeros(len(scale), 1)], dim=1)
    design = torch.cat([root * torch.cat([rows, ones], dim=1), penalty])
    answer = torch.cat([root * targets, torch.zeros(len(scale), targets.shape[1], dtype=torch.float64)])
    found = torch.linalg.lstsq(design, answer).solution
    return found[:-1].T, found[-1]


@pytest.mark.parametrize("ridge", [1e-6, 0.1, 3.0])
def test_a_linear_layer_gets_the_least_squares_change(ridge: float) -> None:
    read, wanted = sample()
    change = solve_linear(layer_moments(read, wanted, PREFIX, WEIGHT), ridge, None)
    weight, bias = explicit(read, wanted, ridge)
    torch.testing.assert_close(change.weight, weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(change.bias, bias, rtol=1e-5, atol=1e-4)


def test_the_gain_behind_the_layer_is_taken_out_and_closed_channels_are_left_alone() -> None:
    read, wanted = sample()
    gain = torch.tensor([0.5, -2.0, 1e-9, 1e-3], dtype=torch.float64)
    moments = layer_moments(read, wanted, PREFIX, WEIGHT)
    change, plain = solve_linear(moments, 0.1, gain), solve_linear(moments, 0.1, None)
    assert not change.weight[2].any()
    assert change.bias[2] == 0
    for channel in (0, 1, 3):
        torch.testing.assert_close(change.weight[channel] * gain[channel], plain.weight[channel])
        torch.testing.assert_close(change.bias[channel] * gain[channel], plain.bias[channel])


def test_a_layer_norm_gets_the_least_squares_change_of_every_channel() -> None:
    read, wanted = sample(4, 4)
    change = solve_scale(layer_moments(read, wanted, PREFIX, WEIGHT), 0.2)
    for channel in range(4):
        one = slice(channel, channel + 1)
        weight, bias = explicit(read[..., one], wanted[..., one], 0.2)
        torch.testing.assert_close(change.weight[channel], weight[0, 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(change.bias[channel], bias[0], rtol=1e-5, atol=1e-4)


def test_a_channel_that_is_dead_gets_no_weight() -> None:
    read, wanted = sample()
    read[..., 1] = 3.0
    change = solve_linear(layer_moments(read, wanted, PREFIX, WEIGHT), 0.1, None)
    assert not change.weight[:, 1].any()
    assert torch.isfinite(change.bias).all()


def test_what_is_wanted_already_changes_nothing() -> None:
    read, wanted = sample()
    layer = nn.Linear(6, 4)
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    change = solve_linear(layer_moments(read, torch.zeros_like(wanted), PREFIX, WEIGHT), 0.1, None)
    assert apply(layer, change) == 6 * 4 + 4
    assert torch.equal(layer.weight, before[0])
    assert torch.equal(layer.bias, before[1])


def test_moments_of_batches_add_up() -> None:
    read, wanted = sample()
    whole = layer_moments(read, wanted, PREFIX, WEIGHT)
    parts = layer_moments(read[:2], wanted[:2], PREFIX, WEIGHT) + layer_moments(read[2:], wanted[2:], PREFIX, WEIGHT)
    torch.testing.assert_close(
        solve_linear(whole, 0.1, None).weight, solve_linear(parts, 0.1, None).weight, rtol=1e-4, atol=1e-5
    )
