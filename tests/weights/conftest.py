"""No test here reaches for a network; and the tensors of a small ViT."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from simo_merge.weights import build_vit
from tests.weights.models import TINY, Tensors


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("SIMO_MERGE_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def tiny() -> Tensors:
    return {name: value.clone() for name, value in build_vit(TINY).state_dict().items()}
