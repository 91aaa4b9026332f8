"""The tiny merged model and its experts, and enough images to hold some out."""

from __future__ import annotations

import pytest

from tests.realign.conftest import experts, labelled, merged
from tests.tiny import TinyData

__all__ = ["experts", "labelled", "merged"]


@pytest.fixture
def images() -> TinyData:
    return TinyData(12)
