"""Open files in data sets that are given to worker processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Something open, opened where it is first needed, and once in each process.

    A file that was opened before a fork shares its position with the other process, and HDF5's state does not survive
    one; so the process that opened it is remembered. A copy that was pickled has nothing open.
    """

    def __init__(self) -> None:
        self._opened: tuple[int, T] | None = None

    def get(self, opener: Callable[[], T]) -> T:
        """What `opener` gave in this process; it is called when this process has not called it yet."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = None  # HDF5 hands out the inherited file again while anything holds it
            self._opened = (os.getpid(), opener())
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_opened": None}
