"""A small data set, and a cache of experts that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small_set import write_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place for results, with the cache in it."""
    place = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMO_MERGE_CACHE", str(place / "cache"))
        yield place


@pytest.fixture(scope="module")
def data(folder: Path) -> str:
    return f"folder:{write_set(folder / 'set')}"
