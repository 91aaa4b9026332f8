"""Surgery by gradient descent on cached features, as published."""

from __future__ import annotations

import torch
from torch import Tensor

from simo_merge.models.aligners import TapAligner
from simo_merge.progress import progress


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
        relative_lr: scale the learning rate of each weight matrix by its root mean square. A module that starts
            near its optimum needs it: features of one tap can be a hundred times smaller than those of another,
            and Adam's step does not know.

    Returns:
        The loss of every step.

    Source: arXiv 2402.02705, equations 5 and 6 (L1, Adam); per token instead of per image, since dense decoders
    read every token.
    """
    device = next(module.parameters()).device
    scales = [float(p.detach().square().mean().sqrt()) if relative_lr else 1.0 for p in module.parameters()]
    optimizer = torch.optim.Adam(
        [{"params": [p], "lr": lr * scale} for p, scale in zip(module.parameters(), scales, strict=True)]
    )
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    losses: list[float] = []
    for _ in progress(range(steps), steps, label):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(patches), generator=generator)])
        chunk, order = order[:batch_size], order[batch_size:]
        x, z = patches[chunk].to(device), prefix[chunk].to(device)
        aligned, aligned_prefix = module(x, z)
        error = (aligned - expert_patches[chunk].to(device)).abs().sum()
        error = error + (aligned_prefix - expert_prefix[chunk].to(device)).abs().sum()
        loss = error / (x.numel() + z.numel())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
