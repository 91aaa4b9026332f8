"""An expert, and a merged model that is aligned for one of its tasks."""

from __future__ import annotations

import pytest
import torch

from simo_merge.models import Aligner, MergeRecord, MultiTaskModel, SingleTaskModel, build_decoder
from simo_merge.tasks import Depth
from tests.named import RECORD, SEGMENTATION, named_encoder, named_expert


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 30, 45, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def expert() -> SingleTaskModel:
    return named_expert()


@pytest.fixture
def merged() -> MultiTaskModel:
    """Merged from two tasks and aligned for one of them."""
    encoder, tasks = named_encoder(), (SEGMENTATION, Depth())
    aligner = Aligner("linear-surgery", encoder.tap_channels, encoder.prefix_tokens, rank=2)
    torch.nn.init.normal_(aligner.taps[0].patch_offset)
    record = MergeRecord(
        method="task-arithmetic",
        parameters={"scale": 0.3},
        experts={task.name: {"path": f"runs/{task.name}", "sha256": "1" * 64} for task in tasks},
        alignment={"method": "surgery-closed-form", "rank": 2, "images": 24},
    )
    return MultiTaskModel(
        encoder,
        {task.name: build_decoder("linear", encoder, task.out_channels) for task in tasks},
        {task.name: task for task in tasks},
        {"depth": aligner},
        RECORD,
        record,
    ).eval()
