"""The encoder: a timm ViT read at several blocks, for images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simo_merge.errors import SimoError


class Taps(NamedTuple):
    """What a decoder reads: the output of a few encoder blocks.

    maps: one (B, C, h, w) patch map a tap. prefix: one (B, P, C) tensor of prefix tokens (the class token first,
    where there is one, then registers) a tap; P is 0 for encoders without any.
    """

    maps: tuple[Tensor, ...]
    prefix: tuple[Tensor, ...]


class Padding(NamedTuple):
    """Pixels added at the left, right, top and bottom of an image."""

    left: int
    right: int
    top: int
    bottom: int


class Encoder(nn.Module):
    """A timm ViT that maps images to `Taps`.

    Images are float (B, 3, H, W) in [0, 1]; the encoder normalises them with the mean and deviation that the
    weights were trained with. Sizes that are no multiple of the patch are padded (border pixels repeated, the
    same amount on both sides, as in the SIMO paper's code); `crop` takes the padding off a prediction.

    Args:
        vit: a timm model with `forward_intermediates`, without classifier.
        name: its timm name, kept in checkpoints.
        taps: block indices, negative ones count from the end; default: four, evenly spaced up to the last.

    Raises:
        SimoError: a tap out of range or given twice.

    Source: the taps of arXiv 2504.11268, appendix C (blocks 3, 6, 9 and 12 of 12).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: nn.Module, name: str, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        self.vit = vit
        self.name = name
        self.taps = _checked_taps(taps, self.depth, name)
        config = self._timm.pretrained_cfg
        mean = config.get("mean", (0.485, 0.456, 0.406))
        std = config.get("std", (0.229, 0.224, 0.225))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def _timm(self) -> Any:
        """The ViT as what it is: timm has no types for what plain ViTs share."""
        return self.vit

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self._timm.blocks)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        height, width = self._timm.patch_embed.patch_size
        return int(height), int(width)

    @property
    def grid_size(self) -> tuple[int, int]:
        """The image size (H, W) of the grid of position embeddings that the encoder was built with."""
        height, width = self._timm.patch_embed.img_size
        return int(height), int(width)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The one (H, W) that the encoder takes; None when any size will do."""
        return self.grid_size if getattr(self._timm.patch_embed, "strict_img_size", True) else None

    @property
    def tap_channels(self) -> tuple[int, ...]:
        """Channels of each tap."""
        return (int(self._timm.embed_dim),) * len(self.taps)

    @property
    def prefix_tokens(self) -> int:
        """Number of prefix tokens (class token and registers)."""
        return int(getattr(self._timm, "num_prefix_tokens", 0))

    def checkpoint_blocks(self, wanted: bool) -> None:
        """Keep a block's input alone for the backward pass and run the block again there (timm's checkpointing)."""
        self._timm.set_grad_checkpointing(wanted)

    def padding(self, height: int, width: int) -> Padding:
        """The padding that brings an image of this size to whole patches."""
        patch_height, patch_width = self.patch_size
        extra_y, extra_x = -height % patch_height, -width % patch_width
        return Padding(extra_x // 2, extra_x - extra_x // 2, extra_y // 2, extra_y - extra_y // 2)

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Image size after padding."""
        pad = self.padding(height, width)
        return height + pad.top + pad.bottom, width + pad.left + pad.right

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches (h, w) of an image of this size, padding included."""
        (padded_height, padded_width), (patch_height, patch_width) = self.padded_size(height, width), self.patch_size
        return padded_height // patch_height, padded_width // patch_width

    def crop(self, prediction: Tensor, height: int, width: int) -> Tensor:
        """Take the padding off a prediction: (B, K, H', W') -> (B, K, H, W)."""
        pad = self.padding(height, width)
        return prediction[..., pad.top : pad.top + height, pad.left : pad.left + width]

    def forward(self, images: Tensor) -> Taps:
        """Features of the images at the taps.

        Raises:
            SimoError: images that are not float (B, 3, H, W), or of a size that this encoder cannot take.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise SimoError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise SimoError(f"expected float images in [0, 1], got {images.dtype}; divide 8-bit images by 255")
        height, width = images.shape[-2:]
        padded = self.padded_size(height, width)
        wanted = self.image_size
        if wanted is not None and padded != wanted:
            raise SimoError(
                f"{self.name} has a fixed image size of {wanted[0]}x{wanted[1]} (height x width), got "
                f"{height}x{width}; resize the images, or build the encoder with image_size={padded}"
            )
        x = (images - self.mean) / self.std
        pad = self.padding(height, width)
        if any(pad):
            x = F.pad(x, tuple(pad), mode="replicate")
        outputs = self._timm.forward_intermediates(
            x,
            indices=list(self.taps),
            return_prefix_tokens=True,
            intermediates_only=True,
            norm=False,
            stop_early=True,  # blocks after the last tap serve nobody
        )
        if self.prefix_tokens == 0:  # timm then returns maps alone
            maps = tuple(outputs)
            return Taps(maps, tuple(m.new_zeros(m.shape[0], 0, m.shape[1]) for m in maps))
        return Taps(tuple(m for m, _ in outputs), tuple(p for _, p in outputs))


def _checked_taps(taps: Sequence[int] | None, depth: int, name: str) -> tuple[int, ...]:
    if taps is None:
        count = min(4, depth)
        return tuple(depth * (i + 1) // count - 1 for i in range(count))
    resolved = tuple(t + depth if t < 0 else t for t in taps)
    if not resolved or any(not 0 <= t < depth for t in resolved):
        raise SimoError(f"taps {list(taps)} are out of range: {name} has blocks 0 to {depth - 1}")
    if list(resolved) != sorted(set(resolved)):
        raise SimoError(f"taps must rise and differ, got {list(taps)} (blocks {list(resolved)} of {name})")
    return resolved
