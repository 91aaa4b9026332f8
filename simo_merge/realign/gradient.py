"""Gradient descent on cached features: surgery as published, and what other fits share with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from simo_merge.models.aligners import TapAligner
from simo_merge.progress import progress


def draws(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of images without end, (batch_size,): a fresh permutation an epoch; batches run on across epochs."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:batch_size]
        order = order[batch_size:]


def relative_rates(parameters: Sequence[nn.Parameter], lr: float) -> list[dict[str, Any]]:
    """Parameter groups in which the learning rate of each weight is relative to its root mean square.

    A module that starts near its optimum needs it: features of one tap can be a hundred times smaller than those of
    another, and Adam's step does not know.
    """
    return [{"params": [p], "lr": lr * float(p.detach().square().mean().sqrt())} for p in parameters]


def fit_tap(
    module: TapAligner,
    patches: Tensor,
    prefix: Tensor,
    expert_patches: Tensor,
    expert_prefix: Tensor,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    label: str,
    relative_lr: bool = False,
) -> list[float]:
    """Minimise the mean absolute difference to the expert's features, over all tokens, with Adam.

    Args:
        module: the aligner of one tap, on the device to fit on.
        patches, prefix: merged features (N, h*w, C) and (N, P, C).
        expert_patches, expert_prefix: the expert's, of the same shapes.
        steps, lr, batch_size: Adam steps, learning rate, images a step.
        seed: of the order of images.
        label: what to call it in the progress.
        relative_lr: see `relative_rates`.

    Returns:
        The loss of every step.

    Source: arXiv 2402.02705, equations 5 and 6 (L1, Adam); per token instead of per image, since dense decoders
    read every token.
    """
    device = next(module.parameters()).device
    parameters = list(module.parameters())
    optimizer = torch.optim.Adam(relative_rates(parameters, lr) if relative_lr else parameters, lr=lr)
    batches = draws(len(patches), batch_size, torch.Generator().manual_seed(seed))
    losses: list[float] = []
    for chunk in progress(islice(batches, steps), steps, label):
        x, z = (tokens[chunk].to(device, torch.float32) for tokens in (patches, prefix))
        aligned, aligned_prefix = module(x, z)
        error = (aligned - expert_patches[chunk].to(device, torch.float32)).abs().sum()
        error = error + (aligned_prefix - expert_prefix[chunk].to(device, torch.float32)).abs().sum()
        loss = error / (x.numel() + z.numel())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
