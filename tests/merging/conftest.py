"""What several tests of merging begin with."""

from __future__ import annotations

import pytest

from tests.merging.file_states import State, vit_states


@pytest.fixture
def states() -> list[State]:
    return vit_states()
