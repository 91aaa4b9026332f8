"""What reaches each layer: moments are those of all rows together, and nothing is changed by looking."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.merging.from_images.layer_inputs import layer_inputs, watch
from tests.merging.reached import all_images, given, linear_weights, reaches
from tests.tiny import state_of


def test_grams_are_those_of_all_rows_that_reach_the_layer() -> None:
    data = given(images=19)  # more than a batch, and the last one smaller
    encoder = data.experts[0].encoder
    seen = layer_inputs(encoder, data, "test")
    assert sorted(seen.grams) == sorted(linear_weights(data))
    for name, gram in seen.grams.items():
        rows = reaches(encoder, all_images(data), name.removesuffix(".weight"))
        assert seen.tokens[name] == len(rows) == 19 * 7
        assert gram.dtype == torch.float64
        assert torch.allclose(gram, rows.T @ rows, rtol=1e-5, atol=1e-4), name


def test_squares_are_those_of_what_a_scale_of_channels_multiplies() -> None:
    data = given(images=5)
    encoder = data.experts[0].encoder
    seen = layer_inputs(encoder, data, "test", scales=True)
    assert sorted(seen.squares) == [
        f"blocks.{i}.{scale}" for i in range(2) for scale in ("ls1.gamma", "ls2.gamma", "norm1.weight", "norm2.weight")
    ]
    for name in ("blocks.1.norm2.weight", "blocks.0.ls1.gamma"):
        rows = reaches(encoder, all_images(data), name.rpartition(".")[0])
        if "norm" in name:
            centred = rows - rows.mean(1, keepdim=True)
            rows = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        assert torch.allclose(seen.squares[name], rows.square().sum(0), rtol=1e-4), name


def test_blocks_after_the_last_tap_are_not_seen() -> None:
    data = given(images=3, taps=(0,))
    seen = layer_inputs(data.experts[0].encoder, data, "test", scales=True)
    assert {name.split(".")[1] for name in (*seen.grams, *seen.squares)} == {"0"}


def test_the_expert_is_not_changed_and_keeps_no_hook() -> None:
    data = given(images=3)
    encoder = data.experts[0].encoder.train()
    before = state_of(encoder)
    layer_inputs(encoder, data, "test", scales=True)
    assert state_of(encoder) == before
    assert encoder.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(module._forward_pre_hooks for module in encoder.modules())


def test_hooks_go_when_the_block_ends_in_an_error() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(RuntimeError), watch(layer):
        layer(torch.ones(1, 3))
    assert not layer[0]._forward_pre_hooks


def test_many_rows_are_summed_in_parts() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 1))
    rows = torch.randn(3, 5001, 3)
    with watch(layer, prefix="a") as seen:
        layer(rows)
        layer(rows)
    wide = rows.flatten(0, 1).double()
    assert torch.allclose(seen.grams["a.0.weight"], 2 * wide.T @ wide)
    assert seen.tokens == {"a.0.weight": 2 * 15003}


def test_half_precision_gives_nearly_the_same() -> None:
    data = given(images=4)
    encoder = data.experts[0].encoder
    exact = layer_inputs(encoder, data, "test").grams
    half = layer_inputs(encoder, replace(data, precision="bfloat16"), "test").grams
    for name, gram in exact.items():
        assert torch.linalg.norm(half[name] - gram) < 0.05 * torch.linalg.norm(gram)


def test_broken_weights_are_refused_by_layer() -> None:
    data = given(images=3)
    data.experts[0].encoder.get_parameter("vit.blocks.1.norm1.bias").data[3] = float("nan")
    with pytest.raises(SimoError, match=r"layer inputs: depth: what reaches blocks\.1\.attn\.qkv\.weight holds NaN"):
        layer_inputs(data.experts[0].encoder, data, "layer inputs: depth")
