"""Merging the running statistics of normalisation layers: a scaled sum of variances could be negative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_MEAN, _VARIANCE, _BATCHES = "running_mean", "running_var", "num_batches_tracked"


def is_running_statistic(name: str) -> bool:
    """Whether a tensor of a state dict was counted by a normalisation layer and not learned."""
    return name.rpartition(".")[2] in (_MEAN, _VARIANCE, _BATCHES)


def merge_running_statistics(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the equal mixture of the experts' features, each taken for a Gaussian.

    mean = (1/T) sum_t mu_t; variance = (1/T) sum_t sigma_t^2 + (1/T) sum_t (mu_t - mean)^2, which is never smaller than
    the mean of the variances.

    Args:
        means: mu_t, (T, C).
        variances: sigma_t^2, (T, C).

    Returns:
        (C,) and (C,), of the types that came.

    Source: Li et al., arXiv 2407.13771 (merging of buffers under a Gaussian prior).
    """
    mu, sigma2 = means.double(), variances.double()
    variance = sigma2.mean(0) + mu.var(0, correction=0)
    return mu.mean(0).to(means.dtype), variance.to(variances.dtype)


def merge_buffers(experts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The running statistics of the experts' state dicts, merged; nothing where there are none.

    A mean without its variance is averaged, a variance without its mean too; `num_batches_tracked` is the sum: so many
    batches stand behind the merged statistics.

    Args:
        experts: State dicts with the same names; only running statistics are read.
    """
    merged: dict[str, Tensor] = {}
    for name in filter(is_running_statistic, experts[0]):
        layer, dot, kind = name.rpartition(".")
        own = torch.stack([expert[name] for expert in experts])
        partner = f"{layer}{dot}{_MEAN}"
        if kind == _BATCHES:
            merged[name] = own.sum(0)
        elif kind == _VARIANCE and partner in experts[0]:
            means = torch.stack([expert[partner] for expert in experts])
            merged[partner], merged[name] = merge_running_statistics(means, own)
        elif name not in merged:
            merged[name] = own.double().mean(0).to(own.dtype)
    return merged
