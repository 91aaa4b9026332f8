"""Per-task normalization recalibration: moments matched channel by channel, and batch norms re-estimated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simo_merge.models import Decoder, RunningNorm2d
from simo_merge.models.aligners import AffineTap
from simo_merge.realign.features import Features
from simo_merge.realign.moments import Moments, TapMoments


def fit_affine(moments: TapMoments, task: str, tap: AffineTap) -> None:
    """Scale and shift each channel so that its mean and deviation are the expert's.

    y = (x - mean_x) * dev_y / dev_x + mean_y. Least squares would multiply by the correlation as well, which
    shrinks the variance; matching the moments keeps it. Channels that never vary get the shift alone.
    """
    with torch.no_grad():
        scale, shift = matched(moments.patches, task)
        tap.patch_scale.copy_(scale)
        tap.patch_shift.copy_(shift)
        for index, group in enumerate(moments.prefix):
            scale, shift = matched(group, task)
            tap.prefix_scale[index].copy_(scale)
            tap.prefix_shift[index].copy_(shift)


def matched(moments: Moments, task: str) -> tuple[Tensor, Tensor]:
    """The scale and shift (C,) of a group of tokens; see `fit_affine`."""
    return match(moments.mean_x(), moments.deviation_x(), moments.mean_y(task), moments.deviation_y(task))


def match(mean_x: Tensor, dev_x: Tensor, mean_y: Tensor, dev_y: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and shift (C,) that carry means and deviations over; see `fit_affine`."""
    varies = dev_x > 1e-6 * dev_x.max().clamp_min(1e-12)
    scale = torch.where(varies, dev_y / dev_x.where(varies, torch.ones_like(dev_x)), torch.ones_like(dev_x))
    return scale, mean_y - scale * mean_x


def batch_norms(decoder: Decoder) -> list[nn.modules.batchnorm._BatchNorm]:
    """Those of a decoder, however deep they lie in it."""
    return [module for module in decoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def reestimate_batch_norm(decoder: Decoder, features: Features, batch_size: int = 16) -> int:
    """Estimate the running statistics of every batch norm in a decoder anew, on merged features.

    Mean and (unbiased) variance are pooled over all images, however they fall into batches: class tokens differ
    between images alone, so the mean of their variances within batches would be too small. While they are
    gathered, every batch norm normalises with the statistics of the batch, as in training; dropout is off.

    Returns:
        How many values (means and variances) were estimated; 0 for a decoder without batch norm.

    Source: REPAIR, arXiv 2211.08403, for merged convolutional networks.
    """
    norms = batch_norms(decoder)
    decoder.eval()
    # Those of the taps normalise by their running statistics always, so what follows must see the new ones.
    of_taps = [norm for norm in norms if isinstance(norm, RunningNorm2d)]
    for group in (of_taps, [norm for norm in norms if norm not in of_taps]):
        gathered = [_InputStatistics(norm) for norm in group]
        chunks = torch.split(torch.arange(len(features)), batch_size) if group else ()
        with torch.no_grad():
            for chunk in chunks:
                decoder(features.taps(chunk), features.image_size)
        for statistics in gathered:
            statistics.write()
    return sum(2 * norm.num_features for norm in norms)


class _InputStatistics:
    """Pooled mean and variance of what one batch norm reads, in float64."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        self.norm = norm.train()
        self.count = 0
        self.total = torch.zeros(norm.num_features, dtype=torch.float64)
        self.squares = torch.zeros_like(self.total)
        self.hook = norm.register_forward_pre_hook(self._add)

    def _add(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        values = inputs[0].double().transpose(0, 1).flatten(1)  # (B, C, ...) -> (C, n)
        self.count += values.shape[1]
        self.total += values.sum(1)
        self.squares += values.square().sum(1)

    def write(self) -> None:
        """Put the statistics into the batch norm and leave it in evaluation mode."""
        self.hook.remove()
        self.norm.eval()
        if self.count == 0:  # the decoder has it, but does not run it
            return
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp_min(0) * self.count / max(self.count - 1, 1)
        if self.norm.running_mean is not None and self.norm.running_var is not None:
            self.norm.running_mean.copy_(mean)
            self.norm.running_var.copy_(variance)
