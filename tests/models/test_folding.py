"""Folding: the decoder alone predicts what aligner and decoder predicted, and what cannot be folded stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from simo_merge.errors import SimoError
from simo_merge.merging import TaskArithmetic, merge
from simo_merge.models import Aligner, DPTDecoder, MultiTaskModel, Taps, build_decoder, fold_aligners
from simo_merge.models.decoders import decoder_from_config
from tests.tiny import DEPTH, NORMALS, tiny_base, tiny_expert

MIXED = [{"kind": "shift"}, {"kind": "full-affine"}]
AFFINE: list[tuple[str, dict[str, Any]]] = [
    ("linear-surgery", {"rank": 3}),
    ("affine", {}),
    ("shift", {}),
    ("magnitude", {}),
    ("full-affine", {}),
    ("token-linear", {"rank": None}),
    ("per-tap", {"each": MIXED}),
]


def restless(module: nn.Module) -> None:
    """Random weights, offsets and batch-norm statistics, so that nothing is neutral by chance."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else tensor + 0.3 * torch.randn_like(tensor))


def model(
    kind: str, options: dict[str, Any], decoder: str = "linear", prefix: bool = True, **more: Any
) -> MultiTaskModel:
    base = tiny_base(**({} if prefix else {"class_token": False, "global_pool": "avg"}))
    experts = [tiny_expert(DEPTH, base, 1), tiny_expert(NORMALS, base, 2)]
    for expert in experts:
        if decoder == "dpt":
            more = {"intermediate_channels": (8, 8), **more}
        expert.decoder = build_decoder(decoder, expert.encoder, expert.task.out_channels, **more)
        restless(expert.decoder)
        expert.eval()
    merged = merge(experts, TaskArithmetic(0.3), base)
    merged.aligners["depth"] = Aligner(kind, merged.encoder.tap_channels, merged.encoder.prefix_tokens, **options)
    restless(merged.aligners["depth"])
    return merged.eval()


def assert_folds_exactly(aligned: MultiTaskModel) -> None:
    """In float64, where random decoders do not blow rounding up; both kinds of decoder end in float32."""
    aligned.double()
    pictures = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    folded = fold_aligners(aligned)
    with torch.inference_mode():
        before, after = aligned(pictures), folded(pictures)
        aligners, aligned.aligners = aligned.aligners, nn.ModuleDict()
        unaligned = aligned(pictures)
        aligned.aligners = aligners
    assert "depth" not in folded.aligners
    assert "depth" in aligned.aligners
    assert (unaligned["depth"] - before["depth"]).abs().max() > 1e-2  # the aligner does something
    torch.testing.assert_close(after["depth"], before["depth"], rtol=1e-5, atol=1e-6)
    assert torch.equal(after["normals"], before["normals"])


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(("kind", "options"), [*AFFINE, ("cross-tap", {"rank": 3})])
def test_an_affine_aligner_becomes_part_of_a_linear_decoder(kind: str, options: dict[str, Any], prefix: bool) -> None:
    assert_folds_exactly(model(kind, options, prefix=prefix))


@pytest.mark.parametrize("tap_norm", [True, False])
@pytest.mark.parametrize("readout", ["cat", "ignore"])
@pytest.mark.parametrize(("kind", "options"), AFFINE[:1] + AFFINE[-2:])
def test_an_affine_aligner_becomes_part_of_dpt(
    kind: str, options: dict[str, Any], readout: str, tap_norm: bool
) -> None:
    assert_folds_exactly(model(kind, options, "dpt", readout=readout, tap_norm=tap_norm))


CROSS_TAP: list[tuple[dict[str, Any], list[int | None]]] = [
    ({"kind": "cross-tap", "rank": 3}, [3, 3]),
    ({"kind": "cross-tap", "rank": 3, "stretched": "directions"}, [3, 3]),
    ({"kind": "cross-tap", "rank": None}, [None, None]),
    ({"kind": "per-tap", "each": [{"kind": "identity"}, {"kind": "cross-tap", "rank": 2}]}, [0, 2]),
    ({"kind": "per-tap", "each": [{"kind": "cross-tap", "rank": None}, {"kind": "full-affine"}]}, [None, 0]),
]


@pytest.mark.parametrize("tap_norm", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(("options", "ranks"), CROSS_TAP)
def test_an_aligner_that_reads_all_taps_becomes_a_readout_of_all(
    options: dict[str, Any], ranks: list[int | None], prefix: bool, tap_norm: bool
) -> None:
    """Of the aligner's rank where that is cheaper than a full matrix; and only the readout of taps changes."""
    kind = {name: value for name, value in options.items() if name != "kind"}
    aligned = model(options["kind"], kind, "dpt", prefix, tap_norm=tap_norm)
    assert_folds_exactly(aligned)
    before = aligned.decoders["depth"].state_dict()
    decoder = fold_aligners(aligned).decoders["depth"]
    assert isinstance(decoder, DPTDecoder)
    assert decoder.config["cross_tap_ranks"] == ranks
    after = decoder.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if not name.startswith("readouts."))
    again = decoder_from_config(decoder.config).double().eval()
    again.load_state_dict(after)
    taps = aligned.encoder(torch.rand(1, 3, 48, 32, dtype=torch.float64))
    with torch.inference_mode():
        assert torch.equal(again(taps, (48, 32)), decoder(taps, (48, 32)))


def test_a_folded_readout_reads_the_first_of_several_prefix_tokens() -> None:
    base = tiny_base(reg_tokens=2)
    expert = tiny_expert(DEPTH, base, 1)
    expert.decoder = build_decoder("dpt", expert.encoder, 1, intermediate_channels=(8, 8))
    restless(expert.decoder)
    merged = merge([expert, tiny_expert(NORMALS, base, 2)], TaskArithmetic(0.3), base)
    merged.aligners["depth"] = Aligner("cross-tap", merged.encoder.tap_channels, 3, rank=2)
    restless(merged.aligners["depth"])
    assert_folds_exactly(merged.eval())


@pytest.mark.parametrize("prefix_tokens", [0, 1, 3])
@pytest.mark.parametrize("rank", [2, None])
def test_taps_of_different_widths_on_a_grid_that_is_padded_fold_too(rank: int | None, prefix_tokens: int) -> None:
    torch.manual_seed(0)
    channels = [6, 8, 10, 12]
    decoder = decoder_from_config(
        {"kind": "dpt", "tap_channels": channels, "prefix_tokens": prefix_tokens, "out_channels": 2}
        | {"intermediate_channels": [4, 4, 4, 4], "fusion_channels": 4}
    ).eval()
    aligner = Aligner("cross-tap", channels, prefix_tokens, rank=rank, stretched="directions")
    encoder = tiny_expert(DEPTH, tiny_base(), 1).encoder
    restless(aligner)
    taps = Taps(
        tuple(torch.randn(2, c, 5, 7) for c in channels), tuple(torch.randn(2, prefix_tokens, c) for c in channels)
    )
    model = MultiTaskModel(encoder, {"depth": decoder}, {"depth": DEPTH}, {"depth": aligner}).eval()
    drawn = torch.get_rng_state()
    folded = fold_aligners(model).decoders["depth"]
    assert torch.equal(torch.get_rng_state(), drawn)
    with torch.inference_mode():
        expected, plain = decoder(aligner(taps), (70, 98)), decoder(taps, (70, 98))
        found = folded(taps, (70, 98))
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_frozen_decoder_stays_frozen() -> None:
    aligned = model("cross-tap", {"rank": 3}, "dpt")
    aligned.decoders["depth"].requires_grad_(False)
    folded = fold_aligners(aligned).decoders["depth"]
    assert isinstance(folded, DPTDecoder)
    assert folded.readouts is not None
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_ranks_of_readouts_fit_the_decoder() -> None:
    encoder = tiny_expert(DEPTH, tiny_base(), 1).encoder
    for more in (
        {"cross_tap_ranks": [1]},
        {"cross_tap_ranks": [1, 1], "readout": "add"},
        {"cross_tap_ranks": [1, 1], "tap_norm": True},
    ):
        with pytest.raises(SimoError, match="one rank for each of its 2 taps, the readout 'cat' and no tap_norm"):
            build_decoder("dpt", encoder, 1, intermediate_channels=(8, 8), **more)


@pytest.mark.parametrize("readout", ["cat", "add", "ignore"])
def test_dpt_without_prefix_tokens_folds_too(readout: str) -> None:
    assert_folds_exactly(model("linear-surgery", {"rank": 3}, "dpt", prefix=False, readout=readout, tap_norm=True))


def test_a_readout_that_adds_takes_maps_that_all_tokens_share() -> None:
    assert_folds_exactly(model("linear-surgery", {"rank": 3}, "dpt", readout="add"))


@pytest.mark.parametrize(
    ("kind", "options", "decoder", "more"),
    [
        ("surgery", {"rank": 3}, "linear", {}),
        ("spatial", {"rank": 3, "directions": 2}, "linear", {}),
        ("cross-tap", {"rank": 3}, "dpt", {"readout": "ignore"}),
        ("cross-tap", {"rank": 3}, "dpt", {"readout": "add"}),
        ("token-linear", {"rank": 3}, "dpt", {"readout": "add"}),
        ("linear-surgery", {"rank": 3}, "dpt", {"readout": "add", "tap_norm": True}),
        ("linear-surgery", {"rank": 3, "stretched": "channels"}, "dpt", {"readout": "add"}),
        ("linear-surgery", {"rank": 3, "stretched": "directions"}, "dpt", {"readout": "add"}),
    ],
)
def test_what_cannot_be_folded_exactly_stays(
    kind: str, options: dict[str, Any], decoder: str, more: dict[str, Any]
) -> None:
    aligned = model(kind, options, decoder, **more)
    folded = fold_aligners(aligned)
    pictures = torch.rand(1, 3, 32, 48)
    assert "depth" in folded.aligners
    with torch.inference_mode():
        assert torch.equal(folded(pictures)["depth"], aligned(pictures)["depth"])


def test_a_folded_dpt_still_has_its_layers() -> None:
    folded = fold_aligners(model("affine", {}, "dpt", tap_norm=True))
    decoder = folded.decoders["depth"]
    assert isinstance(decoder, DPTDecoder)
    assert len(decoder.norms) == 2
