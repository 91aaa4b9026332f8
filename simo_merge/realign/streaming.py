"""The moments of a data set without its features: each batch is run, reduced and forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from simo_merge.data import DenseDataset
from simo_merge.distributed import together
from simo_merge.errors import SimoError
from simo_merge.models import Aligner, MultiTaskModel, SingleTaskModel
from simo_merge.models.aligners import TapAligner
from simo_merge.realign.features import one_size, refuse_missing
from simo_merge.realign.folds import FoldedMoments, fold_bounds
from simo_merge.realign.moments import TapMoments
from simo_merge.realign.realignment import short
from simo_merge.realign.running import MomentsWanted, RunningMoments, Tokens, encode
from simo_merge.scoring import numbered_batches


def stream_moments(
    model: MultiTaskModel,
    experts: Mapping[str, SingleTaskModel],
    images: DenseDataset,
    wanted: MomentsWanted,
    device: torch.device,
    batch_size: int = 16,
    precision: str = "float32",
) -> RunningMoments:
    """Run every image through the merged encoder and all experts' (they lie on the device), and add up its moments.

    They are those of captured features up to rounding. Memory holds one batch's features and the moments
    (`FoldedMoments`), however many images there are. Where a launcher started several processes, all of them make this
    call, each runs a share of the images, and all get the moments of all images.

    Raises:
        SimoError: no images, images of different sizes, a task without an expert, or NaN in the features.
    """
    refuse_missing(model, experts)
    if len(images) == 0:
        raise SimoError(f"{images.name} ({images.split}) has no calibration images")
    bounds = fold_bounds(len(images), wanted.folds)
    sums = RunningMoments(wanted, model.encoder.tap_channels, len(bounds), wanted.precise)
    encoders = {"the merged encoder": model.encoder.eval(), **{t: experts[t].encoder.eval() for t in model.tasks}}

    def own() -> dict[tuple[int, int], str]:
        sizes: dict[tuple[int, int], str] = {}
        for number, batch in numbered_batches(images, batch_size, "moments"):
            sizes.setdefault((batch.images.shape[-2], batch.images.shape[-1]), batch.keys[0])
            one_size([sizes])
            merged, *theirs = (encode(e, batch.images, device, precision, whose) for whose, e in encoders.items())
            for fold, rows in within_folds(bounds, number * batch_size, len(batch.images)):
                parts = {task: _rows(tokens, rows) for task, tokens in zip(model.tasks, theirs, strict=True)}
                sums.add(_rows(merged, rows), parts, fold)
        return sizes

    one_size(together(own))
    sums.add_up(list(model.tasks), model.encoder.prefix_tokens)
    return sums


def within_folds(bounds: Sequence[tuple[int, int]], first: int, count: int) -> Iterator[tuple[int, slice]]:
    """The folds that `count` images from number `first` on fall into, each with its rows among them."""
    for fold, (start, end) in enumerate(bounds):
        rows = slice(max(start - first, 0), min(end - first, count))
        if rows.start < rows.stop:
            yield fold, rows


def _rows(tokens: Tokens, rows: slice) -> Tokens:
    patches, prefix = tokens
    return [p[rows] for p in patches], [p[rows] for p in prefix]


def moment_distances(model: MultiTaskModel, moments: FoldedMoments) -> dict[str, list[dict[str, Any]]]:
    """`alignment_distances` as far as moments tell them: the explained variance, before and after.

    Absolute differences, cosines and CKA are not sums of products of channels over tokens, so they are not there.
    """
    total, found = moments.total(), {}
    for task in model.tasks:
        aligner, rows = model.aligner(task), []
        for index, block in enumerate(model.encoder.taps):
            own = moments.tap(total, index)
            before = after = explained_variance(own, task)
            if isinstance(aligner, Aligner):
                module = aligner.taps[index]
                assert isinstance(module, TapAligner)
                read = moments.tap(total, index, "all") if module.reads_all else own
                after = explained_variance(read, task, module)
            rows.append({"block": block, "before": _rounded(before), "after": _rounded(after)})
        found[task] = rows
    return found


def explained_variance(moments: TapMoments, task: str, tap: TapAligner | None = None) -> float:
    """1 - sum |A x + b - y|^2 / sum |y - mean y|^2 over the patches.

    moments: of x, which the tap aligner reads, and y. tap: A x + b, an affine one; default: the identity.
    """
    group, own = moments.patches, moments.own(task)
    maps = None if tap is None else tap.maps()
    matrix = (
        torch.eye(len(group.x), dtype=group.xx.dtype, device=group.xx.device)[own]
        if maps is None
        else maps.patch.to(group.xx)
    )
    scatter = ((matrix @ group.scatter_xx()) * matrix).sum() - 2 * (matrix * group.scatter_xy(task).T).sum()
    apart = matrix @ group.mean_x() - group.mean_y(task)
    apart = apart if maps is None else apart + maps.patch_offset.to(apart)
    spread = group.count * float(group.deviation_y(task).square().sum())
    return 1 - (float(scatter) + spread + group.count * float(apart.square().sum())) / max(spread, 1e-12)


def _rounded(value: float) -> dict[str, float]:
    return {"explained_variance": short(value)}
