"""Head re-alignment, with labels: the decoders are fine-tuned on the frozen merged encoder."""

from __future__ import annotations

import torch

from simo_merge.data import DenseDataset, collate
from simo_merge.device import autocast
from simo_merge.errors import SimoError
from simo_merge.models import Decoder, Encoder
from simo_merge.progress import progress
from simo_merge.realign.features import Features
from simo_merge.tasks import Task


def fit_head(
    decoder: Decoder,
    encoder: Encoder,
    task: Task,
    features: Features,
    labelled: DenseDataset,
    steps: int,
    lr: float,
    batch_size: int,
    precision: str,
    seed: int,
) -> None:
    """Fine-tune a decoder on captured merged features and the labels of the same images, in the same order.

    One-cycle AdamW on the task's own loss. The encoder gives the geometry of the images; it is not run.

    Raises:
        SimoError: images without labels for the task.

    Source: arXiv 2504.11268, section 5 (head re-alignment).
    """
    if task.name not in labelled.tasks:
        raise SimoError(
            f"head re-alignment needs labels for {task.name!r}; {labelled.name} ({labelled.split}) has "
            f"{', '.join(labelled.tasks) or 'none'}"
        )
    device = next(decoder.parameters()).device
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, cycle_momentum=False)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    size = features.image_size
    decoder.train()
    order = torch.empty(0, dtype=torch.long)
    for _ in progress(range(steps), steps, f"head: {task.name}"):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(features), generator=generator)])
        chunk, order = order[:batch_size], order[batch_size:]
        batch = collate([labelled[int(i)] for i in chunk]).to(device)
        taps = features.taps(chunk)
        taps = type(taps)(tuple(m.to(device) for m in taps.maps), tuple(p.to(device) for p in taps.prefix))
        with autocast(device, precision):
            raw = decoder(taps, encoder.padded_size(*size))
        prediction = task.activate(encoder.crop(raw, *size))
        loss = task.loss(prediction, batch.targets[task.name], batch.masks[task.name])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    decoder.eval()
