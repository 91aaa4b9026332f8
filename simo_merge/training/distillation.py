"""Feature distillation: the shared encoder is kept to what every expert's encoder sees, through a map a task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simo_merge.device import autocast
from simo_merge.errors import SimoError
from simo_merge.models import Encoder, SingleTaskModel, Taps


class Distillation:
    """weight * Σ_t D_t: the distance between the shared features, mapped linearly, and those of every expert.

    D_t is the mean over taps and tokens of ‖ A z / ‖A z‖ - z_t / ‖z_t‖ ‖², between 0 and 4: z the shared token, z_t the
    expert's, A a C x C matrix for each task and tap (a 1x1 convolution) that starts at the identity: all encoders come
    from one base. The paper reads one layer; here it is every tap, prefix tokens with the patches. The
    matrices are trained beside the network, at `adapter_lr`, and thrown away afterwards.

    The experts are frozen. A step costs T more encoder passes without gradient, and T more encoders in memory.

    Args:
        experts: the expert of each task, on the device of training.
        encoder: the shared encoder.
        weight: of the sum in the objective, above 0.
        adapter_lr: peak learning rate of the matrices.
        precision: of the experts' passes.

    Raises:
        SimoError: an expert that reads other taps, or as many channels or prefix tokens as the encoder does not have.

    Source: Li and Bilen, Knowledge Distillation for Multi-task Learning, arXiv 2007.06889, section 3.2.
    """

    def __init__(
        self,
        experts: Mapping[str, SingleTaskModel],
        encoder: Encoder,
        weight: float,
        adapter_lr: float,
        precision: str,
    ) -> None:
        for task, expert in experts.items():
            _check(task, expert.encoder, encoder)
        self.experts = {task: expert.encoder.eval() for task, expert in experts.items()}
        self.weight = weight
        self.adapter_lr = adapter_lr
        self.precision = precision
        self.adapters = nn.ModuleDict({task: _identities(encoder) for task in experts})

    def loss(self, images: Tensor, taps: Taps) -> Tensor:
        """weight * Σ_t D_t, a float32 scalar, for the shared encoder's taps of these images (B, 3, H, W)."""
        shared = tokens_of(taps)
        parts = []
        for task, expert in self.experts.items():
            with torch.no_grad(), autocast(images.device, self.precision):
                wanted = tokens_of(expert(images))
            maps = self.adapters[task].children()
            pairs = zip(maps, shared, wanted, strict=True)
            parts.append(torch.stack([distance(adapt(z), target) for adapt, z, target in pairs]).mean())
        return self.weight * torch.stack(parts).sum()


def distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean over tokens of the squared distance between directions: (B, N, C) twice -> a scalar."""
    difference = F.normalize(ours, dim=-1) - F.normalize(theirs, dim=-1)
    return difference.square().sum(dim=-1).mean()


def tokens_of(taps: Taps) -> list[Tensor]:
    """All tokens of each tap, float32: (B, C, h, w) and (B, P, C) -> (B, h*w + P, C)."""
    return [
        torch.cat([tap_map.flatten(2).transpose(1, 2), prefix], dim=1).float()
        for tap_map, prefix in zip(taps.maps, taps.prefix, strict=True)
    ]


def _identities(encoder: Encoder) -> nn.ModuleList:
    """A matrix for each tap, that changes nothing yet."""
    made = nn.ModuleList()
    for channels in encoder.tap_channels:
        linear = nn.Linear(channels, channels, bias=False)
        nn.init.eye_(linear.weight)
        made.append(linear)
    return made


def _check(task: str, expert: Encoder, encoder: Encoder) -> None:
    ours = (encoder.taps, encoder.tap_channels, encoder.prefix_tokens)
    theirs = (expert.taps, expert.tap_channels, expert.prefix_tokens)
    if ours != theirs:
        raise SimoError(
            f"the expert for {task} has taps {list(theirs[0])} of {theirs[1][0]} channels and {theirs[2]} prefix "
            f"tokens, the shared encoder {list(ours[0])} of {ours[1][0]} and {ours[2]}; distil from experts of the "
            "same encoder and taps"
        )
