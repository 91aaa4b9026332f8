"""Metrics of a model on a data set, under a named protocol."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from simo_merge.data import Batch, DenseDataset
from simo_merge.data.loading import Reader, load
from simo_merge.device import autocast
from simo_merge.distributed import share, together
from simo_merge.errors import SimoError
from simo_merge.metrics import Metric
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.progress import progress
from simo_merge.tasks import Segmentation, Task

Scores = dict[str, dict[str, float]]
BATCH_SIZE = 16


def batches(dataset: DenseDataset, batch_size: int) -> Iterator[Batch]:
    """The data set in order, in batches, read ahead while the model computes."""
    return load(Reader(dataset), batch_plan(dataset, batch_size))


def own_batches(dataset: DenseDataset, batch_size: int, label: str) -> Iterator[Batch]:
    """This process's share of the batches that one process would see, with progress: each is one process's alone."""
    return (batch for _, batch in numbered_batches(dataset, batch_size, label))


def numbered_batches(
    dataset: DenseDataset, batch_size: int, label: str, done: Collection[int] = ()
) -> Iterator[tuple[int, Batch]]:
    """`own_batches` with their numbers in `batch_plan`, but for those that are done already."""
    plan = batch_plan(dataset, batch_size)
    own = share(len(plan))
    left = [number for number in own if number not in done]
    read = load(Reader(dataset), [plan[number] for number in left])
    told = progress(read, len(own), label, start=len(own) - len(left))
    return ((number, batch) for batch, number in zip(told, left, strict=True))


def batch_plan(dataset: DenseDataset, batch_size: int) -> list[range]:
    """Which images make up each batch."""
    starts = range(0, len(dataset), batch_size)
    return [range(i, min(i + batch_size, len(dataset))) for i in starts]


def predict(model: SingleTaskModel | MultiTaskModel, images: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Predictions by task name, whichever of the two kinds of model it is."""
    if isinstance(model, MultiTaskModel):
        return model(images, tasks)  # type: ignore[no-any-return]
    return {model.task.name: model(images)}


def score(
    model: SingleTaskModel | MultiTaskModel,
    dataset: DenseDataset,
    batch_size: int = BATCH_SIZE,
    precision: str = "float32",
    label: str = "evaluating",
    protocol: str = "pooled",
) -> Scores:
    """Every metric of every task that model and data set share: {task: {metric: value}}.

    The model is used as it is, on the device where its weights are, and left in evaluation mode. Where a launcher
    started several processes, all of them make this call: each measures some of the batches, none twice, and all get
    the scores of all of them.

    Args:
        model: a multi-task model or an expert.
        dataset: a labelled split.
        batch_size: images at a time; some protocols average over batches, so there it is part of the result.
        precision: of the forward passes.
        label: what the progress bar says.
        protocol: one of `metrics.PROTOCOLS`.

    Raises:
        SimoError: as `scorable_tasks`, an unknown protocol, or NaN in a prediction.
    """
    names = scorable_tasks(model.tasks, dataset)
    device = next(model.parameters()).device
    metrics = {name: model.tasks[name].metric(protocol) for name in names}
    model.eval()

    def counted() -> list[Metric]:
        with torch.inference_mode():
            for batch in own_batches(dataset, batch_size, label):
                batch = batch.to(device)
                with autocast(device, precision):
                    predictions = predict(model, batch.images, names)
                for name in names:
                    metrics[name].update(predictions[name].float(), batch.targets[name], batch.masks[name])
        return list(metrics.values())

    return {name: metric.compute() for name, metric in zip(names, merged(counted), strict=True)}


def merged(counted: Callable[[], list[Metric]]) -> list[Metric]:
    """The metrics of this process's batches, and in each what the other processes counted.

    Raises:
        SimoError: as `counted` raises it, in whichever process.
    """
    first, *others = together(counted)
    for theirs in others:
        for metric, other in zip(first, theirs, strict=True):
            metric.merge(other)
    return first


def score_sharing_encoder(
    models: Mapping[str, MultiTaskModel],
    dataset: DenseDataset,
    batch_size: int = BATCH_SIZE,
    precision: str = "float32",
    label: str = "evaluating",
    protocol: str = "pooled",
) -> dict[str, Scores]:
    """`score` of several models that differ after the encoder only: its pass is made once for all of them.

    Raises:
        SimoError: as `score`, or models whose encoders differ.
    """
    first = next(iter(models.values()))
    for name, model in models.items():
        check_same_encoder(first, model, name)
        model.eval()
    names = scorable_tasks(first.tasks, dataset)
    device = next(first.parameters()).device
    metrics = {name: {task: model.tasks[task].metric(protocol) for task in names} for name, model in models.items()}

    def counted() -> list[Metric]:
        with torch.inference_mode():
            for batch in own_batches(dataset, batch_size, label):
                batch = batch.to(device)
                size = (batch.images.shape[-2], batch.images.shape[-1])
                with autocast(device, precision):
                    taps = first.taps(batch.images, names)
                for name, model in models.items():
                    for task in names:
                        with autocast(device, precision):
                            prediction = model.decode(taps[task], task, size)
                        metrics[name][task].update(prediction.float(), batch.targets[task], batch.masks[task])
        return [metric for found in metrics.values() for metric in found.values()]

    whole = iter(merged(counted))
    return {name: {task: next(whole).compute() for task in names} for name in models}


def check_same_encoder(first: MultiTaskModel, other: MultiTaskModel, name: str) -> None:
    """Refuse a model whose encoders or tasks are not those of the first.

    Raises:
        SimoError: it names the model.
    """
    ours, theirs = (
        model.encoder.state_dict()
        | model.task_encoders.state_dict(prefix="task.")
        | model.block_changes.state_dict(prefix="changes.")
        for model in (first, other)
    )
    same = first.encoder.taps == other.encoder.taps and ours.keys() == theirs.keys()
    if not same or not all(torch.equal(ours[k], theirs[k]) for k in ours) or list(first.tasks) != list(other.tasks):
        raise SimoError(f"{name} has another encoder or other tasks than the first model; score it by itself")


def scorable_tasks(tasks: Mapping[str, Task], dataset: DenseDataset) -> list[str]:
    """The names of the tasks that the data set has labels for.

    Raises:
        SimoError: an empty data set, no task in common, or a task of other classes or another unit.
    """
    names = [name for name in tasks if name in dataset.tasks]
    if not names:
        raise SimoError(
            f"the model predicts {', '.join(tasks)}, but {dataset.name} ({dataset.split}) has labels for "
            f"{', '.join(dataset.tasks) or 'nothing'}"
        )
    if len(dataset) == 0:
        raise SimoError(f"{dataset.name} ({dataset.split}) has no images to evaluate on")
    for name in names:
        ours, theirs = _meaning(tasks[name]), _meaning(dataset.tasks[name])
        for aspect, value in ours.items():
            if value != theirs.get(aspect):
                raise SimoError(
                    f"task {name!r}: the model has {aspect} {value!r}, {dataset.name} has {theirs.get(aspect)!r}; "
                    "evaluate on data of the same task"
                )
    return names


def _meaning(task: Task) -> dict[str, object]:
    """What model and data must agree on; other options (loss, palette) are the model's own business."""
    classes = task.classes if isinstance(task, Segmentation) else ()
    labels = {f"class {index}": label for index, label in enumerate(classes)}
    return {"kind": task.kind, "channels": task.out_channels, "unit": task.unit, **labels}
