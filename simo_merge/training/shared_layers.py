"""Layers that look beyond one image, as if the whole batch were here: batch norm over processes, dropout over parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from simo_merge.distributed import summed, world_size
from simo_merge.models import RunningNorm2d


class SharedLayers:
    """Makes a model's parts see what they would see in the whole batch; within the block of `installed`.

    Batch norms take their statistics over the same micro-batch of all processes. Torch has such a layer for GPUs
    alone, and as a module of another class; here the modules stay what they are and only their forward pass is
    exchanged. Dropout draws for the whole batch and keeps its own rows, so an image's mask does not depend on how the
    batch was cut; but a single image may lie in memory in another order than the batch would, and masks are drawn in
    that order. A layer whose input does not have an image in each row draws for itself.
    """

    def __init__(self) -> None:
        self._first = 0
        self._whole: int | None = None

    @contextmanager
    def installed(self, model: nn.Module) -> Iterator[None]:
        """Exchange the forward passes; alone, and where the batch is not cut, nothing changes."""
        changed = []
        for module in model.modules():
            if isinstance(module, _BatchNorm) and world_size() > 1:
                module.__dict__["forward"] = partial(_batch_norm, module)
            elif isinstance(module, _DropoutNd) and module.p > 0:
                module.__dict__["forward"] = partial(self._dropout, module)
            else:
                continue
            changed.append(module)
        try:
            yield
        finally:
            for module in changed:
                del module.__dict__["forward"]

    @contextmanager
    def rows(self, first: int, whole: int) -> Iterator[None]:
        """Forward passes within the block see a batch whose first row is row `first` of `whole` ones."""
        before = self._first, self._whole
        self._first, self._whole = first, whole
        try:
            yield
        finally:
            self._first, self._whole = before

    def _dropout(self, module: _DropoutNd, x: Tensor) -> Tensor:
        plain: Tensor
        if self._whole in (None, len(x)) or not module.training or self._first + len(x) > (self._whole or 0):
            plain = type(module).forward(module, x)
            return plain
        lasts = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        ones = torch.empty(
            (self._whole, *x.shape[1:]),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last if lasts else torch.contiguous_format,  # in which masks are drawn
        ).fill_(1)
        kept: Tensor = type(module).forward(module, ones)
        return x * kept[self._first : self._first + len(x)]


def _batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm with mean and variance over all processes, (B, C, ...) -> the same."""
    if not norm.training:
        unchanged: Tensor = type(norm).forward(norm, x)
        return unchanged
    if isinstance(norm, RunningNorm2d):
        with torch.no_grad():
            _take_up(norm, *_statistics(x))
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    mean, variance, count = _statistics(x)
    _take_up(norm, mean, variance, count)
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shape = (1, -1, *[1] * (x.ndim - 2))
    found = (x.float() - mean.view(shape)) * scale.view(shape)
    if norm.affine:
        found = found + norm.bias.view(shape)
    return found.to(x.dtype)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean (C,), biased variance (C,) and number of values of each channel, over all processes."""
    values = x.float().transpose(0, 1).flatten(1)  # (B, C, ...) -> (C, n)
    sums = summed(torch.cat([values.sum(dim=1), values.new_tensor([values.shape[1]])]))
    count = float(sums[-1].detach())
    mean = sums[:-1] / count
    squares = summed((values - mean[:, None]).square().sum(dim=1))
    return mean, squares / count, count


def _take_up(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: float) -> None:
    """Move the running statistics, as torch does: by `momentum`, or to the mean over all batches so far."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        rate = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.detach(), rate)
        norm.running_var.lerp_(variance.detach() * (count / max(count - 1, 1)), rate)
