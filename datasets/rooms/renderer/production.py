"""Many rooms: worker processes, progress, and going on where an earlier run stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from renderer.boxes import BoxCatalogue
from renderer.catalogue import Catalogue, RenderError, Sh3fCatalogue, read_table
from renderer.output import RoomFolder, Row, Settings, room_key
from renderer.room import render_room

BOXES = "boxes"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """What every worker needs to know; ``models`` is a folder of ``.sh3f`` files, or None for plain boxes."""

    root: Path
    settings: Settings
    models: Path | None
    table: Path

    def catalogue(self) -> Catalogue:
        """The furniture that the rooms are drawn from."""
        return BoxCatalogue() if self.models is None else Sh3fCatalogue(self.models, read_table(self.table))


_worker: tuple[Job, Catalogue] | None = None


def _start(job: Job) -> None:
    """Called once in each worker process: the models that it reads stay with it; Ctrl-C is for the parent."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = job, job.catalogue()


def _work(index: int) -> Row:
    assert _worker is not None
    job, catalogue = _worker
    settings = job.settings
    room = render_room(catalogue, (settings.width, settings.height), settings.seed, index)
    return RoomFolder(job.root, settings).write_room(index, room)


def produce(job: Job, indices: range, workers: int) -> tuple[int, int]:
    """Render the rooms ``indices`` that are not complete; returns how many were rendered and how many kept.

    Raises:
        RenderError: see :class:`RoomFolder` and :class:`Sh3fCatalogue`.
    """
    job.catalogue()  # an incomplete set of models is told before a folder is made or a worker started
    folder = RoomFolder(job.root, job.settings)
    folder.open()
    cameras = folder.read_cameras()
    missing = [i for i in indices if room_key(i) not in cameras or not folder.complete(room_key(i))]
    with tqdm(total=len(indices), initial=len(indices) - len(missing), unit="room", disable=None) as bar:
        for row in _rendered(job, missing, workers):
            folder.append_camera(row)
            cameras[row["id"]] = row
            bar.update()
    folder.write_cameras(cameras)
    return len(missing), len(indices) - len(missing)


def _rendered(job: Job, indices: list[int], workers: int) -> Iterator[Row]:
    """Rows as rooms get done; always in fresh processes of one thread, also when there is one worker."""
    if not indices:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(indices)), context, _start, (job,)) as pool:
        try:
            with _single_threaded():
                futures = [pool.submit(_work, index) for index in indices]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RenderError("a worker process died, perhaps for want of memory: lower --workers") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes started in here use one thread each for linear algebra."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
