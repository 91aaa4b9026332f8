"""Head re-alignment: the decoders are fine-tuned on the frozen merged encoder, with labels or without."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor

from simo_merge.data import DenseDataset, collate
from simo_merge.device import autocast
from simo_merge.models import Aligner, Decoder, Encoder, SingleTaskModel, Taps
from simo_merge.progress import progress
from simo_merge.realign.features import Features
from simo_merge.realign.gradient import draws
from simo_merge.tasks import Task
from simo_merge.tasks.agreement import prediction_distance

Loss = Callable[[Tensor, Tensor], Tensor]
"""Activated prediction (n, K, H, W), which images (n,) -> the loss, a scalar."""


def label_loss(task: Task, labelled: DenseDataset, device: torch.device) -> Loss:
    """The task's own loss on the labels of the images."""

    def loss(prediction: Tensor, index: Tensor) -> Tensor:
        batch = collate([labelled[int(i)] for i in index]).to(device)
        return task.loss(prediction, batch.targets[task.name], batch.masks[task.name])

    return loss


def distilled_loss(teacher: SingleTaskModel, expert: Features, device: torch.device, precision: str) -> Loss:
    """`prediction_distance` to what the teacher's decoder, frozen, predicts from the expert's captured features."""

    def loss(prediction: Tensor, index: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device, precision):
            wanted = teacher.decode(_on(expert.taps(index), device), expert.image_size)
        return prediction_distance(teacher.task, prediction, wanted)

    return loss


def fit_head(
    decoder: Decoder,
    encoder: Encoder,
    task: Task,
    features: Features,
    loss: Loss,
    steps: int,
    lr: float,
    batch_size: int,
    precision: str,
    seed: int,
    aligner: Aligner | None = None,
) -> None:
    """Fine-tune a decoder on captured merged features, after its aligner if it has one.

    One-cycle AdamW. The encoder gives the geometry of the images; it is not run.

    Source: arXiv 2504.11268, section 5 (head re-alignment).
    """
    device = next(decoder.parameters()).device
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, cycle_momentum=False)
    batches = draws(len(features), batch_size, torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)  # dropout
    size = features.image_size
    decoder.train()
    for chunk in progress(islice(batches, steps), steps, f"head: {task.name}"):
        taps = _on(features.taps(chunk), device)
        if aligner is not None:
            with torch.no_grad():
                taps = aligner(taps)
        with autocast(device, precision):
            raw = decoder(taps, encoder.padded_size(*size))
        value = loss(task.activate(encoder.crop(raw, *size)), chunk)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    decoder.eval()


def head_error(
    decoder: Decoder,
    encoder: Encoder,
    task: Task,
    features: Features,
    loss: Loss,
    index: Tensor,
    batch_size: int,
    aligner: Aligner | None = None,
) -> float:
    """The mean loss of a decoder on these images, in evaluation and in float32."""
    device, size, total = next(decoder.parameters()).device, features.image_size, 0.0
    with torch.inference_mode():
        for chunk in torch.split(index, batch_size):
            taps = _on(features.taps(chunk), device)
            raw = decoder(taps if aligner is None else aligner(taps), encoder.padded_size(*size))
            total += len(chunk) * float(loss(task.activate(encoder.crop(raw, *size)), chunk))
    return total / len(index)


def _on(taps: Taps, device: torch.device) -> Taps:
    return Taps(tuple(m.to(device) for m in taps.maps), tuple(p.to(device) for p in taps.prefix))
