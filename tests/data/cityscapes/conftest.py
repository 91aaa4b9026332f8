"""The same tiny streets in every layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trees import cityscapes as tree


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return tree.write_official(tmp_path / "official")


@pytest.fixture
def mtan(tmp_path: Path) -> Path:
    return tree.write_mtan(tmp_path / "mtan")


@pytest.fixture
def png(tmp_path: Path) -> Path:
    return tree.write_png(tmp_path / "png")
