"""Per-task normalization recalibration: moments matched channel by channel, and batch norms re-estimated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simo_merge.models import Decoder, Taps
from simo_merge.models.aligners import AffineTap
from simo_merge.realign.features import Features
from simo_merge.realign.moments import Moments, TapMoments


def fit_affine(moments: TapMoments, task: str, tap: AffineTap) -> None:
    """Scale and shift each channel so that its mean and deviation are the expert's.

    y = (x - mean_x) * dev_y / dev_x + mean_y. Least squares would multiply by the correlation as well, which
    shrinks the variance; matching the moments keeps it. Channels that never vary get the shift alone.
    """
    with torch.no_grad():
        scale, shift = _match(moments.patches, task)
        tap.patch_scale.copy_(scale)
        tap.patch_shift.copy_(shift)
        for index, group in enumerate(moments.prefix):
            scale, shift = _match(group, task)
            tap.prefix_scale[index].copy_(scale)
            tap.prefix_shift[index].copy_(shift)


def _match(moments: Moments, task: str) -> tuple[Tensor, Tensor]:
    dev_x, dev_y = moments.deviation_x(), moments.deviation_y(task)
    varies = dev_x > 1e-6 * dev_x.max().clamp_min(1e-12)
    scale = torch.where(varies, dev_y / dev_x.where(varies, torch.ones_like(dev_x)), torch.ones_like(dev_x))
    return scale, moments.mean_y(task) - scale * moments.mean_x()


def reestimate_batch_norm(decoder: Decoder, features: Features, batch_size: int = 16) -> int:
    """Estimate the running statistics of every batch norm in a decoder anew, on merged features.

    Returns:
        How many values (means and variances) were estimated; 0 for a decoder without batch norm.

    Source: REPAIR, arXiv 2211.08403, for merged convolutional networks.
    """
    loader = [features.taps(chunk) for chunk in torch.split(torch.arange(len(features)), batch_size)]
    module = _OnTaps(decoder, features.image_size)
    torch.optim.swa_utils.update_bn(loader, module)
    decoder.eval()
    norms = [m for m in decoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return sum(2 * norm.num_features for norm in norms)


class _OnTaps(nn.Module):
    def __init__(self, decoder: Decoder, size: tuple[int, int]) -> None:
        super().__init__()
        self.decoder = decoder
        self.size = size

    def forward(self, maps: tuple[Tensor, ...], prefix: tuple[Tensor, ...]) -> Tensor:
        return self.decoder(Taps(maps, prefix), self.size)  # type: ignore[no-any-return]
