"""Two experts with one encoder: what merges them is known."""

from __future__ import annotations

import pytest
import torch

from simo_merge.models import SingleTaskModel
from simo_merge.weights import Base
from tests.tiny import DEPTH, NORMALS, TinyData, regression, tiny_base, tiny_expert


@pytest.fixture
def base() -> Base:
    return tiny_base()


@pytest.fixture
def equal(base: Base) -> list[SingleTaskModel]:
    """Coefficient 1/2 gives their encoder back, and nothing else does."""
    experts = [tiny_expert(regression(name), base, seed=1, shift=0.05) for name in ("first", "second")]
    torch.nn.init.normal_(experts[1].decoder.get_parameter("project.weight"), std=0.1)
    return experts


@pytest.fixture
def different(base: Base) -> list[SingleTaskModel]:
    return [tiny_expert(DEPTH, base, 1), tiny_expert(NORMALS, base, 2)]


@pytest.fixture
def images() -> TinyData:
    return TinyData(6)
