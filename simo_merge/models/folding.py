"""Folding: an affine aligner multiplied into the decoder behind it, so that prediction pays nothing for it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from simo_merge.models.aligners import Aligner, TapAligner, TokenMaps
from simo_merge.models.decoders import Decoder, DPTDecoder, LinearDecoder
from simo_merge.models.models import MultiTaskModel
from simo_merge.models.readout import CrossTapReadout, ReadoutMaps


def fold_aligners(model: MultiTaskModel) -> MultiTaskModel:
    """A copy of the model in which every aligner that can be folded exactly is part of its decoder.

    A decoder whose first layer computes W (S u + t) + c, S and t its batch norm in evaluation, reads aligned taps
    u = A z + b as W (S (A z + b) + t) + c: W S A and W (S b + t) + c take the place of W and c, and the norm is
    made the identity. Exact, up to rounding, in evaluation mode; in bfloat16 a decoder whose norm was folded reads taps
    that were not standardised before. `LinearDecoder` takes any affine aligner, and so does DPT with the readout "cat":
    where the aligner reads all taps, the readout does then (`CrossTapReadouts`), and takes no other any more. Of
    those that read each tap alone DPT takes any with "ignore", and with "add" where all tokens share one map and there
    is no norm. Other aligners (surgery with its ReLU, spatial) stay where they are.

    The alignment record lists the tasks that were folded.
    """
    folded = copy.deepcopy(model)
    done = []
    for task in list(folded.aligners):
        if _fold(cast(Decoder, folded.decoders[task]), cast(Aligner, folded.aligners[task])):
            del folded.aligners[task]
            done.append(task)
    if done and folded.merge is not None:
        folded.merge = replace(folded.merge, alignment={**(folded.merge.alignment or {}), "folded": done})
    return folded


def _fold(decoder: Decoder, aligner: Aligner) -> bool:
    """Fold in place; False, and nothing is changed, where that is not exact."""
    modules = [cast(TapAligner, m) for m in aligner.taps]
    maps = [module.maps() for module in modules]
    device = next(decoder.parameters()).device  # a tap that is left as it is has no parameters to say where it lies
    known = [TokenMaps(*(part.to(device) for part in m)) for m in maps if m is not None]
    reads_all = [module.reads_all for module in modules]
    if len(known) < len(maps):
        return False
    if isinstance(decoder, LinearDecoder):
        _fold_linear(decoder, known, reads_all)
        return True
    if not isinstance(decoder, DPTDecoder) or decoder.readouts is not None:
        return False
    if any(reads_all):
        return _fold_dpt_reading_all(decoder, known, reads_all)
    return _fold_dpt(decoder, known)


def _fold_linear(decoder: LinearDecoder, maps: Sequence[TokenMaps], reads_all: Sequence[bool]) -> None:
    """Every tap's map, then its class token, are channels of one vector: A z + b for all of them together."""
    widths = [len(m.patch) for m in maps]
    tokens = len(maps[0].prefix) > 0
    parts = 2 if tokens else 1
    # Where each tap's patches and class token lie among the decoder's channels.
    starts = [parts * sum(widths[:i]) for i in range(len(widths))]
    size = parts * sum(widths)
    matrix = maps[0].patch.new_zeros(size, size)
    offset = matrix.new_zeros(size)
    for i, (found, width) in enumerate(zip(maps, widths, strict=True)):
        sources = range(len(widths)) if reads_all[i] else [i]
        groups = [(found.patch, found.patch_offset), *zip(found.prefix[:1], found.prefix_offset[:1], strict=True)]
        for part, (change, shift) in enumerate(groups):
            rows = slice(starts[i] + part * width, starts[i] + (part + 1) * width)
            offset[rows] = shift
            read = 0
            for j in sources:
                columns = slice(starts[j] + part * widths[j], starts[j] + (part + 1) * widths[j])
                matrix[rows, columns] = change[:, read : read + widths[j]]
                read += widths[j]
    weight = decoder.project.weight.detach().double()[:, :, 0, 0]
    scale, shift = _take_norm(decoder.norm)
    _write(decoder.project, weight, scale, shift, matrix, offset)


def _fold_dpt(decoder: DPTDecoder, maps: Sequence[TokenMaps]) -> bool:
    readout = decoder.config["readout"]
    if readout == "add" and decoder.has_prefix:
        if decoder.norms or not all(bool((m.prefix == m.patch).all()) for m in maps):
            return False
        # The decoder adds the mean of the prefix tokens, and so that of their offsets.
        maps = [m._replace(patch_offset=m.patch_offset + m.prefix_offset.mean(0)) for m in maps]
    for tap, found in enumerate(maps):
        layer = _first_layer(decoder, tap)
        weight = layer.weight.detach().double().flatten(1)  # (K, C) or (K, 2 C)
        if weight.shape[1] == len(found.patch):
            matrix, offset = found.patch, found.patch_offset
        else:
            matrix = torch.block_diag(found.patch, found.prefix[0])  # type: ignore[no-untyped-call]
            offset = torch.cat([found.patch_offset, found.prefix_offset[0]])
        scale, shift = _norm_of(decoder, tap, weight)
        _write(layer, weight, scale, shift, matrix, offset)
    return True


def _fold_dpt_reading_all(decoder: DPTDecoder, maps: Sequence[TokenMaps], reads_all: Sequence[bool]) -> bool:
    """Its readouts read all taps afterwards, and hold the aligner."""
    if decoder.config["readout"] != "cat":
        return False
    channels = decoder.config["tap_channels"]
    parts = []
    for tap, found in enumerate(maps):
        layer = _first_layer(decoder, tap)
        weight = layer.weight.detach().double()  # (C, C) or, with class tokens, (C, 2 C)
        scale, shift = _norm_of(decoder, tap, weight)
        own = slice(sum(channels[:tap]), sum(channels[: tap + 1]))
        of_tokens = torch.stack([found.patch, *found.prefix[:1]])  # of patches, and of the class token
        offset = torch.cat([found.patch_offset, *found.prefix_offset[:1]])
        reads = (weight * scale).reshape(len(weight), len(of_tokens), channels[tap]).transpose(0, 1)
        matrices = weight.new_zeros(len(of_tokens), channels[tap], sum(channels))
        matrices[..., slice(None) if reads_all[tap] else own] = reads @ of_tokens
        assert layer.bias is not None
        bias = layer.bias.detach() + weight * scale @ offset + weight @ shift
        parts.append(ReadoutMaps.of(matrices, bias, own))
    with torch.random.fork_rng(devices=[]):  # fresh weights, which are written over
        readouts = decoder.read_all_taps([part.rank for part in parts])
    readouts.to(layer.weight).requires_grad_(layer.weight.requires_grad).train(decoder.training)
    for readout, part in zip(readouts.taps, parts, strict=True):
        cast(CrossTapReadout, readout).write(part)
    return True


def _first_layer(decoder: DPTDecoder, tap: int) -> nn.Linear | nn.Conv2d:
    """What reads a tap first: the readout's projection, or that of the reassembly where the readout has none."""
    if decoder.config["readout"] == "cat":
        return cast(nn.Linear, decoder.decoder.projection_blocks[tap].project[0])
    return cast(nn.Conv2d, decoder.decoder.reassemble_blocks[tap].project_to_out_channel)


def _norm_of(decoder: DPTDecoder, tap: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and shift of what is read of a tap by this weight (K, C) or (K, 2 C); its norm becomes the identity."""
    if not decoder.norms:
        return weight.new_ones(weight.shape[1]), weight.new_zeros(weight.shape[1])
    scale, shift = _take_norm(cast(nn.BatchNorm2d, decoder.norms[tap]))
    return scale[: weight.shape[1]], shift[: weight.shape[1]]


def _take_norm(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The scale and shift of a batch norm in evaluation, float64; the norm becomes the identity."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    scale = norm.weight.detach().double() / deviation
    shift = norm.bias.detach().double() - scale * norm.running_mean.double()
    with torch.no_grad():
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0)
        norm.weight.fill_((1.0 + norm.eps) ** 0.5)
        norm.bias.zero_()
    return scale, shift


def _write(
    layer: nn.Linear | nn.Conv2d, weight: Tensor, scale: Tensor, shift: Tensor, matrix: Tensor, offset: Tensor
) -> None:
    """weight (scale (matrix z + offset) + shift) + bias becomes the layer."""
    assert layer.bias is not None
    scaled = weight * scale
    bias = layer.bias.detach() + scaled @ offset + weight @ shift  # before the weight, which may share memory, is set
    with torch.no_grad():
        layer.weight.copy_((scaled @ matrix).reshape(layer.weight.shape))
        layer.bias.copy_(bias)
