"""A tiny merged model with its experts and calibration images."""

from __future__ import annotations

import importlib

import pytest

from simo_merge.merging import TaskArithmetic, merge
from simo_merge.models import MultiTaskModel, SingleTaskModel
from tests.tiny import DEPTH, SEGMENTATION, TinyData, tiny_base, tiny_expert


@pytest.fixture
def experts() -> list[SingleTaskModel]:
    base = tiny_base()
    return [tiny_expert(SEGMENTATION, base, 1), tiny_expert(DEPTH, base, 2)]


@pytest.fixture
def merged(experts: list[SingleTaskModel]) -> MultiTaskModel:
    return merge(experts, TaskArithmetic(0.3), tiny_base())


@pytest.fixture
def images() -> TinyData:
    return TinyData(6)


@pytest.fixture
def labelled() -> TinyData:
    return TinyData(6, (SEGMENTATION, DEPTH))


@pytest.fixture
def tiny_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of the tiny encoder, which timm does not know by name, can be read."""
    reader = importlib.import_module("simo_merge.checkpoints.load")  # the package's `load` is the function
    monkeypatch.setattr(reader, "build_vit", lambda name, size: tiny_base().vit)
