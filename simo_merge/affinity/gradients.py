"""Affinity from labels: what a step for one task does to the loss of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from simo_merge.affinity.layers import gather
from simo_merge.affinity.weights import Overlap
from simo_merge.data import Batch, DenseDataset
from simo_merge.merging.parameter import Parameter, count_blocks, layer_of
from simo_merge.models import MultiTaskModel
from simo_merge.scoring import batches

_EMPTY = torch.empty(0)


@dataclass(frozen=True)
class GradientAffinity:
    """TAG's lookahead (T, T), and the overlap of the tasks' gradients as a whole and layer by layer."""

    lookahead: Tensor
    whole: Overlap
    profile: dict[str, Overlap]


def gradient_affinity(
    model: MultiTaskModel, labelled: DenseDataset, length: float, count: int, batch_size: int
) -> GradientAffinity:
    """How the tasks' losses pull at the encoder of `model`, in float32 and evaluation mode.

        Z[s, t] = 1 - L_t(theta - eta_s grad L_s) / L_t(theta),  mean over batches,

    with eta_s such that every step has one length, in weights: losses have units of their own, and a rate that suits
    one of them would be no step, or a wild one, for another (the paper takes the rate of its training). The overlap
    is that of the gradients added up over the batches. Tasks that a batch has no valid label for are left out of it.

    Args:
        model: the base's encoder and the experts' decoders, on the device where to compute. Weights are as before
            afterwards.
        labelled: images with labels.
        length: of a step.
        count: batches, at most.
        batch_size: images of a batch.

    Source: Fifty et al., arXiv 2109.04617 (inter-task affinity).
    """
    names = [name for name in model.tasks if name in labelled.tasks]
    order = [list(model.tasks).index(name) for name in names]
    steps = _Steps(model, names)
    terms, total = [], [torch.zeros(len(names), *p.shape, dtype=torch.float64) for p in steps.parameters]
    for batch in islice(batches(labelled, batch_size), count):
        before, gradients = steps.gradients(batch.to(steps.device))
        terms.append(steps.lookahead(batch.to(steps.device), before, gradients, length))
        for s, each in enumerate(gradients):
            for sums, gradient in zip(total, each, strict=True):
                sums[s] += gradient.cpu()
    lookahead = torch.full((len(model.tasks), len(model.tasks)), torch.nan, dtype=torch.float64)
    lookahead[torch.tensor(order)[:, None], torch.tensor(order)] = torch.stack(terms).nanmean(dim=0)
    whole, profile = gather(_overlaps(steps.names, total, order, len(model.tasks)))
    return GradientAffinity(lookahead, whole, profile)


class _Steps:
    """Losses of the tasks, and steps of the encoder along their gradients."""

    def __init__(self, model: MultiTaskModel, tasks: Sequence[str]) -> None:
        self._model, self._tasks = model.eval(), tasks
        named = dict(model.encoder.vit.named_parameters())
        self.names, self.parameters = list(named), list(named.values())
        self.device = self.parameters[0].device

    def losses(self, batch: Batch) -> Tensor:
        """(T,); NaN where no label of the batch is valid."""
        size = (batch.images.shape[-2], batch.images.shape[-1])
        taps = self._model.encoder(batch.images)
        found = []
        for name in self._tasks:
            prediction = self._model.decode(taps, name, size)
            mask = batch.masks[name]
            loss = self._model.tasks[name].loss(prediction, batch.targets[name], mask)
            found.append(loss if mask.any() else loss * torch.nan)
        return torch.stack(found)

    def gradients(self, batch: Batch) -> tuple[Tensor, list[list[Tensor]]]:
        """The losses, and for each task its gradient at every parameter: 0 where there is none."""
        with _trainable(self.parameters):
            losses = self.losses(batch)
            found = []
            for loss in losses:
                parts = torch.autograd.grad(loss, self.parameters, retain_graph=True, materialize_grads=True)
                found.append([g.nan_to_num() for g in parts] if loss.isnan() else list(parts))
        return losses.detach().double().cpu(), found

    def lookahead(self, batch: Batch, before: Tensor, gradients: Sequence[Sequence[Tensor]], length: float) -> Tensor:
        """(T, T): by what part a step of this length for task s lowers the loss of task t."""
        kept = [p.detach().clone() for p in self.parameters]
        rows = []
        with torch.no_grad():
            for s, each in enumerate(gradients):
                size = torch.stack([g.double().square().sum() for g in each]).sum().sqrt()
                rate = float(length / size) if size > 0 else 0.0
                for parameter, value, gradient in zip(self.parameters, kept, each, strict=True):
                    parameter.copy_(value - rate * gradient)
                after = self.losses(batch).double().cpu()
                drop = 1 - after / torch.where(before > 0, before, torch.nan)
                rows.append(drop if before[s].isfinite() else torch.full_like(drop, torch.nan))
            for parameter, value in zip(self.parameters, kept, strict=True):
                parameter.copy_(value)
        return torch.stack(rows)


@contextmanager
def _trainable(parameters: Sequence[Tensor]) -> Iterator[None]:
    wanted = [p.requires_grad for p in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, before in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(before)


def _overlaps(
    names: Sequence[str], total: Sequence[Tensor], order: Sequence[int], count: int
) -> Iterator[tuple[Parameter, Overlap]]:
    blocks = count_blocks(names)
    for name, sums in zip(names, total, strict=True):
        vectors = torch.zeros(count, *sums.shape[1:], dtype=sums.dtype)  # tasks without labels stay 0
        vectors[list(order)] = sums
        yield Parameter(name, _EMPTY, (), layer_of(name, blocks), blocks + 2), Overlap.of(vectors)
