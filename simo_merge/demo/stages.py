"""The stages of a long run: each says what it does and how long it will take, and is timed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LOG = logging.getLogger(__name__)


class Stages:
    """Times named stages; `timings` is what the report shows."""

    def __init__(self) -> None:
        self.timings: list[tuple[str, float]] = []

    @contextmanager
    def __call__(self, name: str, expectation: str) -> Iterator[None]:
        """Announce a stage with how long it should take, run it, and say how long it took."""
        _LOG.info("%d. %s (%s)", len(self.timings) + 1, name, expectation)
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.timings.append((name, seconds))
        _LOG.info("   done in %.0f s", seconds)

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(seconds for _, seconds in self.timings)
