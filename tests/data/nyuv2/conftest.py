"""One world of NYUv2, which the tests write in the layout that they are about."""

from __future__ import annotations

import pytest

from tests.trees import nyuv2 as trees


@pytest.fixture(scope="session")
def world() -> trees.World:
    return trees.make_world()
