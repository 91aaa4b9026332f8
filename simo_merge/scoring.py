"""Metrics of a model on a data set, pooled over all its valid pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from simo_merge.data import Batch, DenseDataset, collate
from simo_merge.device import autocast
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.progress import progress

Scores = dict[str, dict[str, float]]


def batches(dataset: DenseDataset, batch_size: int) -> Iterator[Batch]:
    """The data set in order, in batches."""
    yield from DataLoader(
        dataset,  # type: ignore[arg-type]  # any sized, indexable object will do
        batch_size=batch_size,
        shuffle=False,
        collate_fn=collate,
    )


def predict(model: SingleTaskModel | MultiTaskModel, images: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Predictions by task name, whichever of the two kinds of model it is."""
    if isinstance(model, MultiTaskModel):
        return model(images, tasks)  # type: ignore[no-any-return]
    return {model.task.name: model(images)}


def score(
    model: SingleTaskModel | MultiTaskModel,
    dataset: DenseDataset,
    batch_size: int = 16,
    precision: str = "float32",
    label: str = "evaluating",
) -> Scores:
    """Every metric of every task that model and data set share: {task: {metric: value}}.

    The model is used as it is, on the device where its weights are, and left in evaluation mode.

    Raises:
        SimoError: an empty data set, no task in common, or NaN in the features.
    """
    names = [name for name in model.tasks if name in dataset.tasks]
    if not names:
        raise SimoError(
            f"the model predicts {', '.join(model.tasks)}, but {dataset.name} ({dataset.split}) has labels for "
            f"{', '.join(dataset.tasks) or 'nothing'}"
        )
    if len(dataset) == 0:
        raise SimoError(f"{dataset.name} ({dataset.split}) has no images to evaluate on")
    _check_classes(model, dataset, names)
    device = next(model.parameters()).device
    metrics = {name: model.tasks[name].metric() for name in names}
    model.eval()
    total = -(-len(dataset) // batch_size)
    with torch.inference_mode():
        for batch in progress(batches(dataset, batch_size), total, label):
            batch = batch.to(device)
            with autocast(device, precision):
                predictions = predict(model, batch.images, names)
            for name in names:
                metrics[name].update(predictions[name].float(), batch.targets[name], batch.masks[name])
    return {name: metric.compute() for name, metric in metrics.items()}


def _check_classes(model: SingleTaskModel | MultiTaskModel, dataset: DenseDataset, names: Sequence[str]) -> None:
    for name in names:
        ours, theirs = model.tasks[name], dataset.tasks[name]
        if (ours.kind, ours.out_channels) != (theirs.kind, theirs.out_channels):
            raise SimoError(
                f"task {name!r} is {ours.kind} with {ours.out_channels} channels in the model and {theirs.kind} "
                f"with {theirs.out_channels} in {dataset.name}; evaluate on data of the same task"
            )
