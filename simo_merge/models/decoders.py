"""Decoders: from the encoder's taps to a dense prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simo_merge.errors import SimoError
from simo_merge.models.encoder import Encoder, Taps
from simo_merge.models.readout import CrossTapReadouts


class Decoder(nn.Module, ABC):
    """Base of the decoders: `forward(taps, size)` gives raw outputs (B, out_channels, H, W).

    `config` holds the arguments that build the same decoder again, plus its `kind`; checkpoints store it.
    """

    config: dict[str, Any]

    @abstractmethod
    def forward(self, taps: Taps, size: tuple[int, int]) -> Tensor:
        """Predict at `size` = (H, W) pixels."""


class LinearDecoder(Decoder):
    """The SIMO paper's light head: resized and concatenated taps, batch norm, one 1x1 convolution.

    Every tap's class token is repeated over its map and concatenated to it, so the convolution reads
    2 * sum(tap_channels) channels (once that when the encoder has no class token).

    Source: arXiv 2504.11268, appendix C.
    """

    def __init__(self, tap_channels: Sequence[int], prefix_tokens: int, out_channels: int) -> None:
        super().__init__()
        self.config = {
            "kind": "linear",
            "tap_channels": list(tap_channels),
            "prefix_tokens": prefix_tokens,
            "out_channels": out_channels,
        }
        channels = sum(tap_channels) * (2 if prefix_tokens else 1)
        self.norm = nn.BatchNorm2d(channels)
        self.project = nn.Conv2d(channels, out_channels, kernel_size=1)

    def forward(self, taps: Taps, size: tuple[int, int]) -> Tensor:
        """Predict at `size` = (H, W) pixels; (B, C, h, w) maps -> (B, out_channels, H, W)."""
        parts = [
            with_class_token(tap_map, prefix) if prefix.shape[1] else tap_map
            for tap_map, prefix in zip(taps.maps, taps.prefix, strict=True)
        ]
        raw = self.project(self.norm(torch.cat(parts, dim=1)))
        return F.interpolate(raw.float(), size=size, mode="bilinear", align_corners=False)


class RunningNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises by its running statistics in training too, so that it takes nothing from an image.

    The statistics are the mean over all batches seen so far; the first batch is normalised by its own. Statistics of
    a small batch would tell of its few images: batch norm in this place costs depth a tenth of its accuracy.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, momentum=None)  # the cumulative mean

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        if self.training:
            with torch.no_grad():
                super().forward(x)  # takes up the batch's statistics
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class DPTDecoder(Decoder):
    """smp's DPT decoder and head, for patch maps of any size.

    smp derives its pyramid from the patch size and asks for whole factors, which patch 14 does not give. Here
    the maps are treated as stride `strides` (16 unless told) and padded to the multiple that the pyramid needs;
    the result is resized to the image. For patch 16, even maps and without `tap_norm` this is smp's DPT to the
    letter.

    Args:
        tap_channels: channels of each tap.
        prefix_tokens: how many prefix tokens the encoder has; with 0 the readout is smp's plain projection.
        out_channels: channels of the prediction.
        intermediate_channels: channels of each pyramid level before fusion; the default is light (smp's own is
            256, 512, 1024, 1024 with 256 fusion channels).
        fusion_channels: channels while fusing.
        readout: what becomes of the class token: "cat", "add" or "ignore".
        tap_norm: standardise the taps' channels before everything, class tokens in channels of their own as in
            `LinearDecoder` (see `RunningNorm2d`), and begin as a clear path from there: residual branches at 0, fusion
            at identity. A few channels of a ViT's taps are a hundred times as large as the others, and random
            branches drown them; without either, a fresh decoder learns segmentation slowly. smp's own has neither.
        strides: the stride each map is taken to have, a power of two; default 16.
        cross_tap_ranks: where the readout "cat" reads all taps, as folding makes it do: of each tap's readout the rank
            of what it takes from the others, 0 for nothing, None for a full matrix; see `CrossTapReadout`.

    Raises:
        SimoError: another number of intermediate_channels or of ranks than taps, a stride that is no power of two, or
            ranks with another readout or with norms.

    Source: Ranftl et al., arXiv 2103.13413; segmentation_models_pytorch's implementation.
    """

    def __init__(
        self,
        tap_channels: Sequence[int],
        prefix_tokens: int,
        out_channels: int,
        intermediate_channels: Sequence[int] = (32, 64, 128, 128),
        fusion_channels: int = 32,
        readout: str = "cat",
        tap_norm: bool = False,
        strides: Sequence[int] | None = None,
        cross_tap_ranks: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        if len(tap_channels) != len(intermediate_channels):
            raise SimoError(
                f"the DPT decoder has {len(intermediate_channels)} intermediate_channels for {len(tap_channels)} "
                "taps; give one number a tap"
            )
        strides = tuple(strides or (16,) * len(tap_channels))
        if any(s < 1 or s & (s - 1) for s in strides):
            raise SimoError(f"the strides of the DPT decoder are {list(strides)}; its pyramid needs powers of two")
        self.config = {
            "kind": "dpt",
            "tap_channels": list(tap_channels),
            "prefix_tokens": prefix_tokens,
            "out_channels": out_channels,
            "intermediate_channels": list(intermediate_channels),
            "fusion_channels": fusion_channels,
            "readout": readout,
            "tap_norm": tap_norm,
            "strides": list(strides),
        }
        if cross_tap_ranks is not None and (readout != "cat" or tap_norm or len(cross_tap_ranks) != len(tap_channels)):
            raise SimoError(
                f"a DPT whose readouts read all taps has one rank for each of its {len(tap_channels)} taps, the "
                f"readout 'cat' and no tap_norm; got {list(cross_tap_ranks)}, {readout!r} and tap_norm {tap_norm}"
            )
        self.has_prefix = prefix_tokens > 0
        parts = 2 if self.has_prefix else 1
        self.norms = nn.ModuleList(RunningNorm2d(parts * c) for c in (tap_channels if tap_norm else ()))
        dpt = _dpt()
        self.decoder = dpt.DPTDecoder(
            encoder_out_channels=tuple(tap_channels),
            encoder_output_strides=strides,
            encoder_has_prefix_tokens=self.has_prefix,
            readout=readout,
            intermediate_channels=tuple(intermediate_channels),
            fusion_channels=fusion_channels,
        )
        for block in self.decoder.modules() if tap_norm else ():
            if isinstance(block, dpt.ResidualConvBlock):
                nn.init.zeros_(block.batch_norm_2.weight)  # the branch begins at 0; else its noise drowns the taps
            elif isinstance(block, dpt.FusionBlock):
                nn.init.dirac_(block.project.weight)  # else each level shrinks what comes from the deeper ones
        self.readouts: CrossTapReadouts | None = None
        if cross_tap_ranks is not None:
            self.read_all_taps(cross_tap_ranks)
        self.head = dpt.DPTSegmentationHead(in_channels=fusion_channels, out_channels=out_channels)
        # The deepest level is downsampled by 2 ** (i + 2) / stride; its map must divide by that.
        self.multiple = max(1, *(int(2 ** (i + 2) / s) for i, s in enumerate(strides)))

    def forward(self, taps: Taps, size: tuple[int, int]) -> Tensor:
        """Predict at `size` = (H, W) pixels; (B, C, h, w) maps -> (B, out_channels, H, W)."""
        maps, tokens = self._read(taps)
        height, width = maps[0].shape[-2:]
        pad = (0, -width % self.multiple, 0, -height % self.multiple)
        maps = [F.pad(m, pad, mode="replicate") if any(pad) else m for m in maps]
        fused = self.decoder([m.contiguous() for m in maps], tokens)
        raw = self.head.head(fused)
        scale = raw.shape[-1] // maps[0].shape[-1]
        raw = raw[..., : height * scale, : width * scale]
        raw = F.interpolate(raw.float(), size=size, mode="bilinear", align_corners=True)
        return self.head.activation(raw)  # type: ignore[no-any-return]  # smp is untyped

    def read_all_taps(self, ranks: Sequence[int | None]) -> CrossTapReadouts:
        """Put fresh readouts that read all taps in the place of the norms and of smp's readouts.

        ranks: as `cross_tap_ranks`.
        """
        self.config |= {"tap_norm": False, "cross_tap_ranks": list(ranks)}
        self.norms = nn.ModuleList()
        blocks = self.decoder.projection_blocks
        self.decoder.projection_blocks = nn.ModuleList(_dpt().ReadoutIgnoreBlock() for _ in blocks)  # pass them on
        self.readouts = CrossTapReadouts(self.config["tap_channels"], self.has_prefix, ranks)
        return self.readouts

    def _read(self, taps: Taps) -> tuple[list[Tensor], Sequence[Tensor | None]]:
        """Maps (B, C, h, w) and prefix tokens (B, P, C) of each tap, after norms or readouts if there are any."""
        if self.readouts is not None:
            return self.readouts(taps), [None] * len(taps.maps)
        if not self.has_prefix:
            maps = [norm(m) for norm, m in zip(self.norms, taps.maps, strict=True)] if self.norms else list(taps.maps)
            return maps, [None] * len(maps)
        if not self.norms:
            return list(taps.maps), list(taps.prefix)
        maps, tokens = [], []
        for norm, tap_map, prefix in zip(self.norms, taps.maps, taps.prefix, strict=True):
            normed = norm(with_class_token(tap_map, prefix))  # (B, 2 C, h, w)
            tap_map, token = normed.split(tap_map.shape[1], dim=1)
            maps.append(tap_map)
            tokens.append(token[:, :, 0, 0][:, None])  # (B, 1, C): smp's readout takes the first prefix token
        return maps, tokens


def with_class_token(tap_map: Tensor, prefix: Tensor) -> Tensor:
    """A map (B, C, h, w) and, repeated over it, the first of its prefix tokens (B, P, C) -> (B, 2 C, h, w)."""
    return torch.cat([tap_map, prefix[:, 0, :, None, None].expand_as(tap_map)], dim=1)


DECODERS: dict[str, type[Decoder]] = {"dpt": DPTDecoder, "linear": LinearDecoder}


def build_decoder(kind: str, encoder: Encoder, out_channels: int, **options: Any) -> Decoder:
    """A fresh decoder of this kind on top of an encoder.

    Raises:
        SimoError: an unknown kind (the known ones are listed) or an option that the kind does not have.
    """
    return decoder_from_config(
        {
            "kind": kind,
            "tap_channels": encoder.tap_channels,
            "prefix_tokens": encoder.prefix_tokens,
            "out_channels": out_channels,
            **options,
        }
    )


def decoder_from_config(config: Mapping[str, Any]) -> Decoder:
    """The decoder that `config` (see `Decoder.config`) describes, with fresh weights.

    Raises:
        SimoError: as `build_decoder`.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    if kind not in DECODERS:
        raise SimoError(f"unknown decoder {kind!r}; known: {', '.join(sorted(DECODERS))}")
    try:
        return DECODERS[kind](**options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SimoError(f"the options of decoder {kind!r} do not fit: {error}") from error


def _dpt() -> Any:
    """The parts of smp's DPT; imported when one is built, because merging files of weights needs none of smp."""
    from segmentation_models_pytorch.decoders.dpt import decoder

    return decoder
