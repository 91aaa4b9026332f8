"""The smallest encoders, experts and data sets that merging, re-alignment and evaluation can be tried on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from simo_merge.data import Sample
from simo_merge.models import BaseRecord, Decoder, Encoder, SingleTaskModel, Taps, build_decoder
from simo_merge.realign import CalibrationFeatures, Features
from simo_merge.tasks import Depth, Normals, Regression, Segmentation, Task
from simo_merge.weights import Base, fingerprint
from simo_merge.weights.architecture import create_vit

NAME = "vit_tiny_patch16_224"
SIZE = (32, 48)  # 2 x 3 patches
TAPS = (1, 3)
IMAGE_BYTES = len(TAPS) * 7 * 48 * 4  # of its features in float32: six patches and a class token at each tap
SEGMENTATION = Segmentation(classes=("floor", "wall", "lamp"))
DEPTH = Depth()
NORMALS = Normals()


def tiny_base(seed: int = 0, image_size: tuple[int, int] = SIZE, **changes: object) -> Base:
    """Random weights under the name of a source; 4 blocks of 48 channels unless told."""
    torch.manual_seed(seed)
    vit = create_vit(NAME, image_size, **{"depth": 4, "embed_dim": 48, "num_heads": 3, **changes})
    return Base(vit, NAME, "timm:tiny", fingerprint(vit.state_dict()))


def tiny_expert(
    task: Task, base: Base, seed: int = 0, shift: float = 0.02, decoder: str = "linear", taps: Sequence[int] = TAPS
) -> SingleTaskModel:
    """Base weights plus noise of deviation `shift`, and a random decoder: `seed` determines both."""
    torch.manual_seed(seed)
    vit = copy.deepcopy(base.vit)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(shift * torch.randn_like(parameter))
    encoder = Encoder(vit, base.name, taps)
    record = BaseRecord(base.name, base.source, base.sha256)
    return SingleTaskModel(encoder, build_decoder(decoder, encoder, task.out_channels), task, record).eval()


class LastTapDecoder(Decoder):
    """A decoder that reads the patches of the last tap alone, and has no batch norm."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.config = {"kind": "plain"}
        self.project = nn.Conv2d(channels, out_channels, 1)

    def forward(self, taps: Taps, size: tuple[int, int]) -> Tensor:
        return nn.functional.interpolate(self.project(taps.maps[-1]), size=size)


class TinyData:
    """Random images; labels are random but valid, with a few pixels masked."""

    def __init__(
        self,
        count: int = 6,
        tasks: Sequence[Task] = (),
        size: tuple[int, int] = SIZE,
        seed: int = 0,
        split: str = "val",
    ) -> None:
        self.name = "tiny"
        self.split = split
        self.tasks = {task.name: task for task in tasks}
        self.keys = tuple(f"{split}-{seed}-{i}" for i in range(count))
        generator = torch.Generator().manual_seed(seed)
        self.samples = [self._sample(key, size, generator) for key in self.keys]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def _sample(self, key: str, size: tuple[int, int], generator: torch.Generator) -> Sample:
        coarse = torch.rand(1, 3, size[0] // 8, size[1] // 8, generator=generator)
        image = torch.nn.functional.interpolate(coarse, size=size)[0]
        targets = {name: self._target(task, size, generator) for name, task in self.tasks.items()}
        masks = {name: torch.rand(size, generator=generator) > 0.1 for name in self.tasks}
        return Sample(image, targets, masks, key)

    def _target(self, task: Task, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        if isinstance(task, Segmentation):
            return torch.randint(0, task.out_channels, size, generator=generator)
        values = torch.randn(task.out_channels, *size, generator=generator)
        if isinstance(task, Depth):
            return values.abs() + 0.5
        return torch.nn.functional.normalize(values, dim=0) if isinstance(task, Normals) else values


def labelled_by(models: Sequence[SingleTaskModel], images: TinyData, noise: float = 0.01) -> TinyData:
    """The same images, with labels that each regression model predicts almost exactly."""
    labelled = copy.copy(images)
    labelled.tasks = {model.task.name: model.task for model in models}
    labelled.samples = []
    for sample in images.samples:
        with torch.inference_mode():
            targets = {model.task.name: model(sample.image[None])[0] for model in models}
        targets = {name: target + noise * torch.randn(target.shape) for name, target in targets.items()}
        masks = {name: torch.ones(sample.size, dtype=torch.bool) for name in targets}
        labelled.samples.append(replace(sample, targets=targets, masks=masks))
    return labelled


def regression(name: str) -> Regression:
    return Regression(name=name)


def features(patches: Tensor, prefix: Tensor | None = None, grid: tuple[int, int] | None = None) -> Features:
    """Features of one tap: patches (N, h*w, C), prefix (N, P, C), which is empty unless given."""
    count, tokens, channels = patches.shape
    prefix = torch.zeros(count, 0, channels) if prefix is None else prefix
    return Features((patches,), (prefix,), grid or (1, tokens), SIZE, tuple(f"val-0-{i}" for i in range(count)))


def related_features(
    count: int = 12, tokens: int = 20, channels: int = 8, prefix: int = 2, rank: int = 3, noise: float = 0.1
) -> CalibrationFeatures:
    """Merged features, and those of experts "a" and "b" a map of low rank away; every kind of token has its mean."""
    merged = 1.0 + torch.randn(1, tokens + prefix, channels) * 0.2 + torch.randn(count, tokens + prefix, channels)
    merged[:, tokens:] += torch.randn(prefix, channels) * 3
    experts = {}
    for task in ("a", "b"):
        change = torch.randn(channels, rank) @ torch.randn(rank, channels) / channels
        other = merged + merged @ change + torch.randn(channels) + noise * torch.randn_like(merged)
        other[:, tokens:] += torch.randn(prefix, channels)
        experts[task] = features(other[:, :tokens], other[:, tokens:])
    return CalibrationFeatures(features(merged[:, :tokens], merged[:, tokens:]), experts)


def deep_features(
    count: int = 12, tokens: int = 15, channels: tuple[int, ...] = (6, 8), prefix: int = 2, noise: float = 0.3
) -> CalibrationFeatures:
    """Merged features of several taps, and those of experts "a" and "b": each tap a linear map of all, plus noise."""
    size = sum(channels)
    whole = 1.0 + torch.randn(count, 1, size) * 0.3 + torch.randn(count, tokens + prefix, size)
    whole[:, tokens:] += torch.randn(prefix, size) * 2

    def split(values: Tensor) -> Features:
        parts = values.split(channels, dim=-1)
        one = features(parts[0][:, :tokens], parts[0][:, tokens:])
        return Features(
            tuple(p[:, :tokens] for p in parts), tuple(p[:, tokens:] for p in parts), one.grid, one.image_size, one.keys
        )

    experts = {}
    for task in ("a", "b"):
        change = torch.randn(size, 4) @ torch.randn(4, size) / size
        experts[task] = split(whole + whole @ change + torch.randn(size) + noise * torch.randn_like(whole))
    return CalibrationFeatures(split(whole), experts)


def state_of(*models: torch.nn.Module) -> str:
    """A fingerprint of all weights and buffers."""
    return "".join(fingerprint(model.state_dict()) for model in models)


class Unreadable(TinyData):
    """Images that nobody may look at."""

    def __getitem__(self, index: int) -> Sample:
        raise AssertionError(f"image {index} was read")


def passes_counted(ours: Encoder) -> list[int]:
    """Grows by the number of images of every pass through the encoder from here on."""
    seen: list[int] = []
    ours.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    return seen
