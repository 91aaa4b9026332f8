"""How fast samples are read and augmented, and how long a training step waits for them: simo_merge and a plain loader.

    python benchmarks/data_loading.py                                # the embedded rooms
    python benchmarks/data_loading.py --data folder:DIR --workers 0 2 4 8
    python benchmarks/data_loading.py --device cuda --precision bfloat16

The plain loader is what one writes in an afternoon: PIL, numpy and torch's DataLoader, every label converted by hand,
the same zoom, mirror and colour jitter with `interpolate` and torchvision. It checks nothing. It reads folders that a
`dataset.yaml` describes; for other data simo_merge is measured alone.

Three tables: (1) milliseconds of one image, part by part, in one thread; (2) images a second of a loader by itself;
(3) the steps of a training run. Contestants take turns in every round, so that what else goes on meets them all;
ratios are taken within a round, and the tables give medians of rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from simo_merge.data import Augmentation, Batch, DenseDataset, Sample, SourceDataset, collate, open_dataset
from simo_merge.data.folder import FolderSource
from simo_merge.data.labels import Labels, NormalsLabels, SegmentationLabels, ValueLabels
from simo_merge.device import resolve_device
from simo_merge.models import Encoder, SingleTaskModel, build_decoder
from simo_merge.results import environment, replace_text
from simo_merge.training import TrainConfig
from simo_merge.training.batches import training_batches
from simo_merge.training.stages import Stage, stage_optimizer
from simo_merge.training.trainer import Trainer
from simo_merge.weights.architecture import build_vit

Row = dict[str, Any]
WARMING = 3  # steps of a round before those that are measured

# -- the plain loader -------------------------------------------------------------------------------------------------


class Plain(Dataset[Sample]):
    def __init__(self, source: FolderSource, keys: Sequence[str], tasks: Sequence[str], augmented: bool) -> None:
        from torchvision.transforms import ColorJitter

        self.root, self.keys, self.augmented = source.root, keys, augmented
        self.labels = {name: source.description.tasks[name] for name in tasks}
        images = source.description.images
        self.folder = source.root / images.folder
        self.suffix = images.suffix or next(iter(sorted(self.folder.iterdir()))).suffix
        self.jitter = ColorJitter(0.2, 0.2, 0.2, 0.02)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        sample = self.read(index)
        return self.augment(sample) if self.augmented else sample

    def read(self, index: int) -> Sample:
        key = self.keys[index]
        pixels = np.array(Image.open(self.folder / f"{key}{self.suffix}").convert("RGB"))
        image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        read = {name: self.label(name, labels, key) for name, labels in self.labels.items()}
        return Sample(image, {n: t for n, (t, _) in read.items()}, {n: m for n, (_, m) in read.items()}, key)

    def label(self, name: str, labels: Labels, key: str) -> tuple[Tensor, Tensor]:
        path = self.root / (labels.folder or name) / f"{key}{labels.suffix}"
        stored = np.load(path) if labels.suffix == ".npy" else np.array(Image.open(path))
        if isinstance(labels, SegmentationLabels):
            ids = torch.from_numpy(stored.astype(np.int64))
            mask = torch.ones_like(ids, dtype=torch.bool)
            for value in labels.invalid:
                mask &= ids != value
            return torch.where(mask, ids - labels.first_class, 0), mask
        values = torch.from_numpy(stored.astype(np.float32))
        values = values[None] if values.ndim == 2 else values.permute(2, 0, 1)
        if isinstance(labels, NormalsLabels):
            order, signs = labels.channels_and_signs
            values = 2 * values / 255 - 1 if stored.dtype == np.uint8 else values
            length = values.norm(dim=0)
            mask = length > 0.1
            values = values[list(order)] * torch.tensor(signs).view(3, 1, 1) / length.clamp(min=0.1)
            return torch.where(mask, values, 0.0), mask
        assert isinstance(labels, ValueLabels)
        mask = torch.ones(values.shape[-2:], dtype=torch.bool)
        for value in labels.invalid:
            mask &= (values != value).any(0)
        return torch.where(mask, values * labels.scale + labels.offset, 0.0), mask

    def augment(self, sample: Sample) -> Sample:
        height, width = sample.size
        scale = float(np.random.choice([1.0, 1.2, 1.5]))  # noqa: NPY002 - plain
        h, w = int(height / scale), int(width / scale)
        y, x = np.random.randint(height - h + 1), np.random.randint(width - w + 1)  # noqa: NPY002
        mirrored = np.random.rand() < 0.5  # noqa: NPY002

        def moved(maps: Tensor, mode: str) -> Tensor:
            window = maps[..., y : y + h, x : x + w].float()
            window = window[None] if window.ndim == 3 else window[None, None]
            found = F.interpolate(window, size=(height, width), mode=mode).reshape(maps.shape).to(maps.dtype)
            return found.flip(-1) if mirrored else found

        targets = {name: moved(target, "nearest") for name, target in sample.targets.items()}
        masks = {name: moved(mask, "nearest") for name, mask in sample.masks.items()}
        for name, labels in self.labels.items():
            if labels.kind == "depth":
                targets[name] = targets[name] / scale
            elif labels.kind == "disparity":
                targets[name] = targets[name] * scale
            elif labels.kind == "normals" and mirrored:
                targets[name][0] = -targets[name][0]
        return Sample(self.jitter(moved(sample.image, "bilinear")), targets, masks, sample.key)


# -- what is measured -------------------------------------------------------------------------------------------------

Start = Callable[[int], Iterator[Batch]]  # number of batches -> the batches


def contestants(dataset: DenseDataset, options: argparse.Namespace) -> dict[tuple[str, int], Start]:
    """(name, workers) -> what begins to load."""
    plain = plain_of(dataset, options)
    augmentation = Augmentation(dataset.tasks) if options.augment else None
    size, found = options.batch_size, dict[tuple[str, int], Start]()

    def ours(workers: int) -> Start:
        return lambda count: training_batches(dataset, augmentation, size, count, 0, workers=workers)

    def theirs(workers: int) -> Start:
        def start(count: int) -> Iterator[Batch]:
            loader = DataLoader(plain, size, shuffle=True, drop_last=True, num_workers=workers, collate_fn=collate)
            return itertools.islice(forever(loader), count)

        return start

    for workers in options.workers:
        found["simo_merge", workers] = ours(workers)
        if plain is not None:
            found["plain", workers] = theirs(workers)
    return found


def forever(loader: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from loader


def plain_of(dataset: DenseDataset, options: argparse.Namespace) -> Plain | None:
    if not (isinstance(dataset, SourceDataset) and isinstance(dataset.source, FolderSource)):
        return None
    if dataset.size is not None or not set(dataset.tasks) <= set(dataset.source.tasks):
        return None
    return Plain(dataset.source, dataset.keys, tuple(dataset.tasks), options.augment)


def parts(dataset: DenseDataset, options: argparse.Namespace) -> list[Row]:
    """Milliseconds of CPU an image."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    indices = range(min(40, len(dataset)))
    samples = [dataset[i] for i in indices]
    size, plain = samples[0].size, plain_of(dataset, options)
    jobs: dict[tuple[str, str], Callable[[int], object]] = {("simo_merge", "read"): lambda i: dataset[i]}
    if isinstance(dataset, SourceDataset):
        source, keys = dataset.source, dataset.keys
        jobs["simo_merge", "  image"] = lambda i: source.image(keys[i])
        for task in (name for name in dataset.tasks if name in source.tasks):
            jobs["simo_merge", f"  {task}"] = lambda i, task=task: source.label(task, keys[i], size)
    for name, jitter in (("augment", 0.2), ("  without jitter", 0.0)):
        augmentation = Augmentation(dataset.tasks, jitter=jitter)
        jobs["simo_merge", name] = lambda i, a=augmentation: a(samples[i], np.random.default_rng(i))
    if plain is not None:
        jobs |= {("plain", "read"): plain.read, ("plain", "augment"): lambda i: plain.augment(samples[i])}
    times: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    for _ in range(options.rounds):
        for job, run in jobs.items():
            began = time.process_time()
            for i in indices:
                run(i)
            times[job].append(1e3 * (time.process_time() - began) / len(indices))
    torch.set_num_threads(threads)
    return [{"loader": who, "part": what, "ms": statistics.median(t)} for (who, what), t in times.items()]


def throughput(dataset: DenseDataset, options: argparse.Namespace) -> list[Row]:
    """Images a second after the first batch, which waits for worker processes to begin."""
    loaders = contestants(dataset, options)
    rates: dict[tuple[str, int], list[float]] = {name: [] for name in loaders}
    starts: dict[tuple[str, int], list[float]] = {name: [] for name in loaders}
    for _ in range(options.rounds):
        for name, start in loaders.items():
            began = time.perf_counter()
            batches = start(options.batches + 1)
            next(batches)
            first = time.perf_counter()
            images = sum(len(batch) for batch in batches)
            rates[name].append(images / (time.perf_counter() - first))
            starts[name].append(first - began)
    rows = []
    for name in loaders:
        row = {"loader": name[0], "workers": name[1], "images/s": statistics.median(rates[name])}
        row["first batch, s"] = statistics.median(starts[name])
        if ("plain", name[1]) in loaders:
            row["times plain"] = ratio(rates[name], rates["plain", name[1]])
        rows.append(row)
    return rows


def training(dataset: DenseDataset, options: argparse.Namespace, device: torch.device, whole: bool) -> list[Row]:
    """What a step takes, and how long it waits for its batch: an encoder, a DPT decoder, AdamW."""
    config = TrainConfig(batch_size=options.batch_size, precision=options.precision)
    (task,) = dataset.tasks.values()
    torch.manual_seed(0)
    encoder = Encoder(build_vit(options.encoder, None), options.encoder)
    model = SingleTaskModel(encoder, build_decoder("dpt", encoder, task.out_channels), task).to(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, dataset, config, Path(folder))
    stage = Stage("decoder and encoder" if whole else "decoder", options.steps, trains_encoder=whole)
    optimizer, _ = stage_optimizer(stage, trainer.model, config, None)
    ends = {min(options.workers), max(options.workers)}
    loaders = {name: start for name, start in contestants(dataset, options).items() if name[1] in ends}
    waits: dict[tuple[str, int], list[float]] = {name: [] for name in loaders}
    steps: dict[tuple[str, int], list[float]] = {name: [] for name in loaders}
    for _ in range(options.rounds):
        for name, start in loaders.items():
            waited, taken = [], []
            began = time.perf_counter()
            for batch in start(options.steps + WARMING):
                loaded = time.perf_counter()
                trainer._step(stage, batch, optimizer, 0)  # it reads the loss, so it ends when the device is done
                ended = time.perf_counter()
                waited.append(loaded - began)
                taken.append(ended - began)
                began = ended
            waits[name].append(sum(waited[WARMING:]) / options.steps)
            steps[name].append(sum(taken[WARMING:]) / options.steps)
    rows = []
    for name in loaders:
        row = {"stage": stage.name, "loader": name[0], "workers": name[1]}
        row["step, ms"], row["waits, ms"] = 1e3 * statistics.median(steps[name]), 1e3 * statistics.median(waits[name])
        row["waits, %"] = 100 * ratio(waits[name], steps[name])
        if ("plain", 0) in loaders:
            row["step, times plain 0"] = ratio(steps[name], steps["plain", 0])
        rows.append(row)
    return rows


def ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, others, strict=True))


def table(rows: list[Row]) -> str:
    texts = [
        {key: f"{value:.3g}" if isinstance(value, float) else str(value) for key, value in r.items()} for r in rows
    ]
    lines = [dict(zip(rows[0], rows[0], strict=True)), *texts]
    widths = {key: max(len(line[key]) for line in lines) for key in rows[0]}
    return "\n".join("  ".join(line[key].ljust(width) for key, width in widths.items()) for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="rooms", metavar="SPEC")
    parser.add_argument("--split", default="train")
    parser.add_argument("--task", help="of the training steps; default: the last that the data set lists")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--no-augment", dest="augment", action="store_false")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=24, help="of a round of the loader by itself")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="training steps of a round and stage; 0: none")
    parser.add_argument("--encoder", default="vit_small_patch14_dinov2")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--device")
    parser.add_argument("--quick", action="store_true", help="one short round with and without a worker, and no result")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/data_loading.json"))
    options = parser.parse_args(arguments)
    if options.quick:
        options.workers, options.batches, options.rounds, options.steps = [0, 1], 2, 1, 1
        options.batch_size = 2
        options.precision = "float32"  # bfloat16 is slow where the CPU has no instructions for it
        options.output = options.output.with_stem(options.output.stem + "-quick")

    device = resolve_device(options.device)
    where = {**environment(device), "cores": str(os.cpu_count()), "load before": f"{os.getloadavg()[0]:.1f}"}
    dataset = open_dataset(options.data, options.split)
    height, width = dataset[0].size
    what = {
        "data": options.data,
        "split": options.split,
        "size": f"{height}x{width}",
        "tasks": ", ".join(dataset.tasks),
    }
    what |= {name: str(getattr(options, name)) for name in ("augment", "batch_size", "encoder", "precision")}
    rows: list[Row] = []

    def tell(found: list[Row], name: str) -> None:
        print(table(found), "", sep="\n", flush=True)
        rows.extend({"table": name, **row} for row in found)

    tell(parts(dataset, options), "parts")
    tell(throughput(dataset, options), "throughput")
    if options.steps:
        one = open_dataset(options.data, options.split, [options.task or list(dataset.tasks)[-1]])
        what["task of the steps"] = next(iter(one.tasks))
        for whole in (False, True):
            tell(training(one, options, device, whole), "training")
    replace_text(options.output, json.dumps({"environment": where | what, "rows": rows}, indent=2) + "\n")
    print(*(f"{key}: {value}" for key, value in (where | what).items()), f"-> {options.output}", sep="\n")


if __name__ == "__main__":
    main()
