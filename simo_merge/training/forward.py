"""The forward pass of a training step: an encoder pass, and the loss of every task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from simo_merge.data import Batch
from simo_merge.device import autocast
from simo_merge.models import Decoder, MultiTaskModel, SingleTaskModel, Taps

Trained = SingleTaskModel | MultiTaskModel


@dataclass(frozen=True)
class Forward:
    """What a forward pass leaves: what the decoders read, and the losses (T,) in the order of the tasks."""

    taps: Taps
    losses: Tensor


def forward(model: Trained, batch: Batch, trains_encoder: bool, precision: str, seed: int) -> Forward:
    """Losses of a batch on the model's device, in training mode; a frozen encoder runs in evaluation mode.

    Args:
        model: an expert, or a model with one encoder and several decoders.
        batch: images and labels of all its tasks.
        trains_encoder: whether the graph reaches into the encoder.
        precision: of encoder and decoders; losses are float32.
        seed: of dropout. Every decoder draws from it as it would alone, so no task feels how many there are.
    """
    model.train()
    model.encoder.train(trains_encoder)
    size = (batch.images.shape[-2], batch.images.shape[-1])
    torch.manual_seed(seed)
    losses = []
    reaches = trains_encoder and torch.is_grad_enabled()
    with autocast(batch.images.device, precision), torch.set_grad_enabled(reaches):
        taps = model.encoder(batch.images)
    for index, (name, task) in enumerate(model.tasks.items()):
        if index:
            torch.manual_seed(seed)
        with autocast(batch.images.device, precision):
            prediction = _decode(model, name, taps, size)
        losses.append(task.loss(prediction, batch.targets[name], batch.masks[name]))
    return Forward(taps, torch.stack(losses))


def decoders_of(model: Trained) -> dict[str, Decoder]:
    """The decoders, by task."""
    if isinstance(model, SingleTaskModel):
        return {model.task.name: model.decoder}
    return {name: cast(Decoder, model.decoders[name]) for name in model.tasks}


def buffers_of(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Every buffer with the module that has it and its name there."""
    return [
        (module, name, buffer) for module in model.modules() for name, buffer in module.named_buffers(recurse=False)
    ]


@contextmanager
def unchanged_buffers(model: nn.Module, values: Sequence[Tensor] | None = None) -> Iterator[None]:
    """Forward passes within the block leave no trace in batch norms: only the step's own pass is to count.

    They work on copies, so that a graph made before the block can still be followed back: written to and restored,
    its buffers would count as changed. With `values`, in the order of `buffers_of`, the copies begin with those.
    """
    kept = buffers_of(model)
    begin = [buffer for *_, buffer in kept] if values is None else values
    try:
        for (module, name, _), value in zip(kept, begin, strict=True):
            setattr(module, name, value.clone())
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


def _decode(model: Trained, name: str, taps: Taps, size: tuple[int, int]) -> Tensor:
    if isinstance(model, SingleTaskModel):
        return model.decode(taps, size)
    return model.decode(taps, name, size)
