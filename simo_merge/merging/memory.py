"""Memory that a pass uses again and again: touching fresh pages can take longer than the arithmetic."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(eq=False)
class _Piece:
    """Some bytes, and who was given them last."""

    bytes: np.ndarray[Any, np.dtype[np.uint8]]
    holder: weakref.ref[Any] | None = None

    @property
    def is_idle(self) -> bool:
        return self.holder is None or self.holder() is None


class Memory:
    """Hands out tensors over pieces of memory, and takes a piece again once nobody holds a tensor over it.

    A caller may therefore keep what it was given for as long as it likes. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._lock = Lock()

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor on the CPU with unspecified values."""
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        with self._lock:
            piece = self._idle(size)
            view = piece.bytes[:size]  # the tensor holds this view, and whatever is made of the tensor holds it too
            piece.holder = weakref.ref(view)
        return torch.from_numpy(view).view(dtype).view(tuple(shape))

    def _idle(self, size: int) -> _Piece:
        """The smallest idle piece that is large enough; else a new one, in place of an idle one that is too small."""
        idle = sorted((piece for piece in self._pieces if piece.is_idle), key=lambda piece: piece.bytes.nbytes)
        fitting = next((piece for piece in idle if piece.bytes.nbytes >= size), None)
        if fitting is not None:
            return fitting
        if idle:
            self._pieces.remove(idle[-1])
        self._pieces.append(_Piece(np.empty(size, dtype=np.uint8)))
        return self._pieces[-1]
