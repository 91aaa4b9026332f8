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
from simo_merge.models.readout import CrossTapReadout, cheapest_rank


def fold_aligners(model: MultiTaskModel) -> MultiTaskModel:
    """A copy of the model in which every aligner that can be folded exactly is part of its decoder.

    A decoder whose first layer computes W (S u + t) + c, S and t its batch norm in evaluation, reads aligned taps
    u = A z + b as W (S (A z + b) + t) + c: W S A and W (S b + t) + c take the place of W and c, and the norm is
    made the identity. Exact, up to rounding, in evaluation mode. `LinearDecoder` takes any affine aligner, and so
    does DPT with the readout "cat": where the aligner reads all taps, the readout does then (`CrossTapReadouts`). Of
    those that read each tap alone DPT takes any with "ignore", and with "add" where all tokens share one map and there
    is no norm. Other aligners (surgery with its ReLU, spatial) stay where they are.

    The alignment record lists the tasks that were folded.
    """
    folded = copy.deepcopy(model)
    done = []
    for task in list(folded.aligners):
        decoder = _folded(cast(Decoder, folded.decoders[task]), cast(Aligner, folded.aligners[task]))
        if decoder is not None:
            folded.decoders[task] = decoder
            del folded.aligners[task]
            done.append(task)
    if done and folded.merge is not None:
        folded.merge = replace(folded.merge, alignment={**(folded.merge.alignment or {}), "folded": done})
    return folded


def _folded(decoder: Decoder, aligner: Aligner) -> Decoder | None:
    """The decoder, changed in place, or another in its place; None, and nothing is changed, where that is not exact."""
    modules = [cast(TapAligner, m) for m in aligner.taps]
    maps = [module.maps() for module in modules]
    device = next(decoder.parameters()).device  # a tap that is left as it is has no parameters to say where it lies
    known = [TokenMaps(*(part.to(device) for part in m)) for m in maps if m is not None]
    reads_all = [module.reads_all for module in modules]
    if len(known) < len(maps):
        return None
    if isinstance(decoder, LinearDecoder):
        _fold_linear(decoder, known, reads_all)
        return decoder
    if not isinstance(decoder, DPTDecoder) or decoder.readouts is not None:
        return None
    if any(reads_all):
        return _reading_all_taps(decoder, known, reads_all) if decoder.config["readout"] == "cat" else None
    return decoder if _fold_dpt(decoder, known) else None


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


def _reading_all_taps(decoder: DPTDecoder, maps: Sequence[TokenMaps], reads_all: Sequence[bool]) -> DPTDecoder:
    """The same decoder with readouts of all taps, which hold the aligner."""
    channels = decoder.config["tap_channels"]
    written: list[tuple[Tensor, Tensor | None, Tensor]] = []  # of each tap: for all patches, for class tokens; the bias
    for tap, found in enumerate(maps):
        layer = _first_layer(decoder, tap)
        weight = layer.weight.detach().double()  # (C, C) or, with class tokens, (C, 2 C)
        scale, shift = _norm_of(decoder, tap, weight)
        offset = torch.cat([found.patch_offset, *found.prefix_offset[:1]])
        wide = weight.new_zeros(1 + decoder.has_prefix, len(weight), sum(channels))
        reads = slice(None) if reads_all[tap] else slice(sum(channels[:tap]), sum(channels[: tap + 1]))
        for part, matrix in enumerate([found.patch, *found.prefix[:1]]):
            columns = slice(part * channels[tap], (part + 1) * channels[tap])
            wide[part, :, reads] = (weight * scale)[:, columns] @ matrix
        bias = layer.bias.detach() + weight * scale @ offset + weight @ shift  # type: ignore[union-attr]
        written.append((wide[0], wide[1] if decoder.has_prefix else None, bias))
    config = {name: value for name, value in decoder.config.items() if name not in ("kind", "tap_norm")}
    ranks = [cheapest_rank(of_tap[0], tap, channels) for tap, of_tap in enumerate(written)]
    new = DPTDecoder(**config, cross_tap=ranks).to(written[0][0].device, layer.weight.dtype).train(decoder.training)
    assert new.readouts is not None
    for readout, of_tap in zip(new.readouts.taps, written, strict=True):
        cast(CrossTapReadout, readout).write(*of_tap)
    for name in ("reassemble_blocks", "fusion_blocks"):
        setattr(new.decoder, name, getattr(decoder.decoder, name))
    new.head = decoder.head
    return new


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
