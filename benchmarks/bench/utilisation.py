"""How busy a GPU was while something ran."""

from __future__ import annotations

import statistics
import threading
from types import TracebackType
from typing import Self

import torch


class Utilisation:
    """Samples a GPU's utilisation within `with`; `percent` is the mean over all blocks, None where it cannot be told.

    What the driver reports is the share of time in which any kernel ran. Telling needs the package nvidia-ml-py.
    """

    def __init__(self, device: torch.device, interval: float = 0.05) -> None:
        self.device, self.interval = device, interval
        self._seen: list[float] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def percent(self) -> float | None:
        return statistics.fmean(self._seen) if self._seen else None

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            self._stop.clear()
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _sample(self) -> None:
        while not self._stop.wait(self.interval):
            try:
                self._seen.append(float(torch.cuda.utilization(self.device)))
            except (RuntimeError, ModuleNotFoundError, AttributeError):
                return
