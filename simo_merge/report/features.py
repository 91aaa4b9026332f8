"""What a page shows of features: distances, distributions, and maps of where they miss the experts'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simo_merge.colours import Picture, magma, unit_interval
from simo_merge.data import DenseDataset
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel
from simo_merge.models.blocks import block_label
from simo_merge.realign import Features, capture, error_maps, feature_planes, tap_distances
from simo_merge.report.contents import AlignmentRow, FeatureCloud, Panel, PanelCell

SHOWN_IMAGES = 3  # of which the errors are mapped one by one, after the mean of all
POINTS = 300  # of each distribution
BRIGHTEST = 99.0  # percentile of the merged features' errors at which the colours end


@dataclass
class FeatureViews:
    """What the report shows of features."""

    alignment: list[AlignmentRow]
    clouds: list[FeatureCloud]
    errors: list[Panel]


def feature_views(
    images: DenseDataset,
    experts: Sequence[SingleTaskModel],
    merged: MultiTaskModel,
    models: Mapping[str, MultiTaskModel],
    names: tuple[str, str | None],
    precision: str,
) -> FeatureViews:
    """Everything about features, best of images that nothing was fitted on.

    Args:
        images: these images; one expert's features at a time are in memory beside the merged ones.
        experts: what features are compared with.
        merged: the merge.
        models: re-aligned models, by method.
        names: what the merge is called, and which of the models is shown in pictures beside it, if any.
        precision: of the encoders' passes.
    """
    before, shown = names
    ours = capture(merged.encoder, images, precision=precision)
    found = FeatureViews([], [], [])
    maps: dict[str, dict[str, Tensor]] = {}
    for expert in experts:
        task = expert.task.name
        theirs = capture(expert.encoder, images, precision=precision)
        for name, model in {before: merged, **models}.items():
            if model is not merged and not len(model.aligners):
                continue  # this re-alignment changes the decoders, not the features
            found.alignment += _rows(ours, theirs, merged.encoder, model, task, name)
        aligner = None if shown is None else models[shown].aligner(task)
        for plane in feature_planes(ours, theirs, merged.encoder.taps, aligner, POINTS):
            aligned = None if plane.aligned is None else plane.aligned.numpy()
            tap = block_label(plane.block)
            cloud = FeatureCloud(task, tap, plane.expert.numpy(), plane.merged.numpy(), aligned, plane.explained)
            found.clouds.append(cloud)
        maps[task] = {before: error_maps(ours, theirs)}
        if shown is not None:
            maps[task][shown] = error_maps(ours, theirs, aligner)
    found.errors = error_panels(images, maps, merged.encoder)
    return found


def picture(image: Tensor) -> Picture:
    """An image (3, H, W) in [0, 1] as uint8 (H, W, 3)."""
    return (image.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()


def error_panels(images: DenseDataset, maps: Mapping[str, Mapping[str, Tensor]], encoder: Encoder) -> list[Panel]:
    """The mean over all images, then some images: tasks down, models across; a task's maps have one scale.

    maps: by task and model, (N, taps, h, w) as `error_maps` gives them.
    """
    flat = {task: {name: errors.mean(1) for name, errors in of.items()} for task, of in maps.items()}  # (N, h, w)
    limits = {task: float(np.percentile(next(iter(of.values())).numpy(), BRIGHTEST)) for task, of in flat.items()}
    every = max(1, len(images) // SHOWN_IMAGES)
    some = range(0, len(images), every)[:SHOWN_IMAGES]
    mean = sum(images[i].image / len(images) for i in range(len(images)))
    assert isinstance(mean, Tensor)
    shown: list[tuple[str, Tensor, Tensor | None]] = [(f"mean over {len(images)} images", mean, None)]
    shown += [(images[i].key, images[i].image, torch.tensor(i)) for i in some]
    panels = []
    for title, image, index in shown:
        size = (image.shape[-2], image.shape[-1])
        cells = []
        for task, of in flat.items():
            top = limits[task] if index is not None else max(float(errors.mean(0).max()) for errors in of.values())
            for name, errors in of.items():
                values = errors.mean(0) if index is None else errors[index]
                drawn = drawn_map(values, top, encoder, size)
                cells.append(PanelCell(f"{task}, 0 to {top:.2g}", name, drawn))
        panels.append(Panel(title, picture(image), cells))
    return panels


def drawn_map(values: Tensor, top: float, encoder: Encoder, size: tuple[int, int]) -> Picture:
    """A map (h, w) as a picture as large as the image, every patch where the encoder sees it."""
    height, width = encoder.patch_size
    coloured = magma(unit_interval(values.double().numpy(), 0.0, top))  # (h, w, 3)
    whole = torch.from_numpy(coloured).permute(2, 0, 1)
    whole = whole.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2)
    return encoder.crop(whole[None], *size)[0].permute(1, 2, 0).contiguous().numpy()


def _rows(
    ours: Features, theirs: Features, encoder: Encoder, model: MultiTaskModel, task: str, name: str
) -> list[AlignmentRow]:
    distances = tap_distances(ours, theirs, encoder.taps, model.aligner(task), cka=True)
    return [
        AlignmentRow(
            method=name,
            task=task,
            tap=block_label(distance.block),
            cosine_distance=distance.cosine,
            l1=distance.l1,
            explained_variance=distance.explained_variance,
            cka=float("nan") if distance.cka is None else distance.cka,
        )
        for distance in distances
    ]
