"""Mean and deviation of every channel, a few rows at a time: features may be larger than memory, or half precise."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 16


def channel_means(tokens: Tensor, rows: int = _ROWS, device: torch.device | None = None) -> Tensor:
    """The mean of each channel of tokens (N, ..., C), of any type: float64 (C,).

    rows: of N that are read at once. device: where they are summed; default: where they are.
    """
    total = torch.zeros(tokens.shape[-1], dtype=torch.float64, device=device or tokens.device)
    for part in torch.split(tokens, rows):
        total += part.flatten(0, -2).to(total.device).double().sum(0)
    return total / (tokens.numel() / tokens.shape[-1])


def channel_deviations(tokens: Tensor, rows: int = _ROWS) -> Tensor:
    """The standard deviation (divided by n) of each channel of tokens (N, ..., C): float64 (C,)."""
    mean, total = channel_means(tokens, rows), torch.zeros(tokens.shape[-1], dtype=torch.float64, device=tokens.device)
    for part in torch.split(tokens, rows):
        total += (part.flatten(0, -2).double() - mean).square().sum(0)
    return (total / (tokens.numel() / tokens.shape[-1])).sqrt()
