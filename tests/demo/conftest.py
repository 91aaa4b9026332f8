"""Two small experts and their merge, without any file."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from simo_merge.merging import TaskArithmetic, merge
from simo_merge.models import MultiTaskModel, SingleTaskModel
from tests.tiny import DEPTH, SEGMENTATION, tiny_base, tiny_expert


@pytest.fixture
def experts() -> list[SingleTaskModel]:
    base = tiny_base()
    return [tiny_expert(task, base, seed) for seed, task in enumerate((SEGMENTATION, DEPTH))]


@pytest.fixture
def merged(experts: Sequence[SingleTaskModel]) -> MultiTaskModel:
    return merge(experts, TaskArithmetic(), tiny_base())
