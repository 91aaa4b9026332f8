"""Interrupted training: a data set that ends the run after a number of images."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from simo_merge.data import Sample
from tests.tiny import DEPTH, TinyData


class Interrupted(BaseException):
    """Ends a run as a kill does: nothing in the library catches it."""


class Interrupting(TinyData):
    """Six images of depth; the run that asks for one more than `allowed` is interrupted."""

    def __init__(self, allowed: int) -> None:
        super().__init__(6, (DEPTH,))
        self.allowed = allowed

    def __getitem__(self, index: int) -> Sample:
        if self.allowed == 0:
            raise Interrupted
        self.allowed -= 1
        return super().__getitem__(index)


@pytest.fixture
def interrupted() -> type[BaseException]:
    return Interrupted


@pytest.fixture
def interrupting() -> Callable[[int], TinyData]:
    return Interrupting


@pytest.fixture
def data() -> TinyData:
    """What `interrupting` hands out, without the interruption."""
    return TinyData(6, (DEPTH,))
