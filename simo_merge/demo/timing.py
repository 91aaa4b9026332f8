"""Seconds of one forward pass: the experts one after another against the multi-task model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from simo_merge.models import MultiTaskModel, SingleTaskModel


def forward_seconds(
    experts: Sequence[SingleTaskModel], model: MultiTaskModel, images: Tensor, repeats: int = 5
) -> tuple[float, float]:
    """Median seconds an image of a forward pass over a batch: (all experts, the multi-task model).

    The two are timed in turn, so that what else the machine does falls on both.
    """
    spent: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for turn in range(repeats + 1):
            seconds = (_timed(list(experts), images), _timed([model], images))
            if turn:  # the first pass warms up
                spent[0].append(seconds[0])
                spent[1].append(seconds[1])
    return statistics.median(spent[0]) / len(images), statistics.median(spent[1]) / len(images)


def _timed(models: Sequence[torch.nn.Module], images: Tensor) -> float:
    _wait(images)
    began = time.perf_counter()
    for model in models:
        model(images)
    _wait(images)
    return time.perf_counter() - began


def _wait(images: Tensor) -> None:
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
