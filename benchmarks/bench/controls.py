"""What re-alignment has to be better than: all weights of a merge trained with the images that it is fitted to."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from simo_merge.data import DenseDataset, Sample, collate
from simo_merge.device import autocast
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.scoring import predict
from simo_merge.tasks import Segmentation, Task
from simo_merge.training import TrainConfig
from simo_merge.training.trainer import Trainer


class Predicted:
    """Images with what experts predict as their labels; every pixel is valid."""

    def __init__(self, images: DenseDataset, tasks: dict[str, Task], targets: Sequence[dict[str, Tensor]]) -> None:
        self.name, self.split, self.keys = images.name, f"{images.split}, labelled by experts", images.keys
        self.tasks = tasks
        self._images, self._targets = images, targets

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        sample, targets = self._images[index], self._targets[index]
        masks = {name: torch.ones(sample.size, dtype=torch.bool) for name in targets}
        return replace(sample, targets=targets, masks=masks)


def predicted(
    images: DenseDataset, experts: Sequence[SingleTaskModel], device: torch.device, precision: str, batch_size: int = 16
) -> Predicted:
    """The images labelled by the experts: classes of a segmentation, values of everything else."""
    found: list[dict[str, Tensor]] = [{} for _ in range(len(images))]
    for expert in experts:
        name = expert.task.name
        expert.to(device).eval()
        for start in range(0, len(images), batch_size):
            chunk = range(start, min(start + batch_size, len(images)))
            batch = collate([images[i] for i in chunk]).images.to(device)
            with torch.inference_mode(), autocast(device, precision):
                raw = predict(expert, batch, [name])[name].float().cpu()
            values = raw.argmax(1) if isinstance(expert.task, Segmentation) else raw
            for index, value in zip(chunk, values, strict=True):
                found[index][name] = value.clone()  # no longer a tensor of inference mode
        expert.to("cpu")
    return Predicted(images, {expert.task.name: expert.task for expert in experts}, found)


def fine_tuned(
    model: MultiTaskModel, images: DenseDataset, config: TrainConfig, device: torch.device
) -> MultiTaskModel:
    """A copy of the merged model, encoder and decoders trained on these labels with equal weights; on the CPU."""
    trained = copy.deepcopy(model).to(device)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(trained, images, config, Path(folder)).run()
    return trained.cpu().eval()
