"""A base, three experts and a few images."""

from __future__ import annotations

import pytest

from simo_merge.models import SingleTaskModel
from simo_merge.weights import Base
from tests.merging.learned.learning import ALL
from tests.tiny import TinyData, tiny_base, tiny_expert


@pytest.fixture
def base() -> Base:
    return tiny_base()


@pytest.fixture
def experts(base: Base) -> tuple[SingleTaskModel, ...]:
    return tuple(tiny_expert(task, base, seed + 1) for seed, task in enumerate(ALL))


@pytest.fixture
def images() -> TinyData:
    return TinyData(5)
