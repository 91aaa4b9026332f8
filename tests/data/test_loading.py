"""Loading: the plan's order whatever reads it, ahead of its use, and errors that reach the user as they were raised."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simo_merge.data import Batch, FolderDataset, Sample
from simo_merge.data.loading import AHEAD, Reader, load, naming
from simo_merge.errors import SimoError
from tests.tiny import DEPTH, TinyData

Write = Callable[..., Path]

DATA = TinyData(5, (DEPTH,))
PLAN = [[4, 0], [1], [3, 3, 2]]
WORKERS = pytest.mark.parametrize("workers", [0, 2])


class Failing(TinyData):
    """Data of which one sample cannot be read."""

    def __init__(self, error: Exception) -> None:
        super().__init__(4, (DEPTH,))
        self.error = error

    def __getitem__(self, index: int) -> Sample:
        if index == 2:
            raise self.error
        return super().__getitem__(index)


@WORKERS
def test_batches_come_in_the_order_of_the_plan(workers: int) -> None:
    loaded = list(load(Reader(DATA), PLAN, workers))
    assert [batch.keys for batch in loaded] == [tuple(DATA.keys[i] for i in items) for items in PLAN]
    for batch, items in zip(loaded, PLAN, strict=True):
        assert torch.equal(batch.images, torch.stack([DATA[i].image for i in items]))
        assert torch.equal(batch.targets["depth"], torch.stack([DATA[i].targets["depth"] for i in items]))
        assert torch.equal(batch.masks["depth"], torch.stack([DATA[i].masks["depth"] for i in items]))


@WORKERS
def test_an_empty_plan_has_no_batches(workers: int) -> None:
    assert list(load(Reader(DATA), [], workers)) == []


@WORKERS
def test_loading_draws_nothing_from_the_global_generator(workers: int) -> None:
    before = torch.random.get_rng_state()
    list(load(Reader(DATA), PLAN, workers))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_batches_are_read_ahead_while_the_caller_is_busy() -> None:
    read, enough = [], threading.Event()

    def reading(item: int) -> Sample:
        read.append((item, threading.current_thread() is threading.main_thread()))
        if len(read) == 1 + AHEAD:
            enough.set()
        return DATA[item % 5]

    batches = load(reading, [[i] for i in range(50)])
    next(batches)
    assert enough.wait(timeout=20)  # without being asked again
    batches.close()
    assert [item for item, _ in read] == list(range(len(read)))
    assert len(read) == 1 + AHEAD
    assert not any(in_main for _, in_main in read)


def test_for_a_caller_that_has_seen_enough_nothing_more_is_begun() -> None:
    read, closed = [], threading.Event()

    def reading(item: int) -> Sample:
        read.append(item)
        assert item == 0 or closed.wait(timeout=20)
        return DATA[item]

    batches = load(reading, [[0], [1], [2], [3]])
    next(batches)
    batches.close()
    closed.set()
    list(load(Reader(DATA), [[0]]))  # by then the thread has done what was left to it
    assert set(read) <= {0, 1}  # 1 may have been begun before


def test_threads_do_not_add_up() -> None:
    for _ in range(3):
        batches = load(Reader(DATA), PLAN)
        next(batches)
        list(load(Reader(DATA), PLAN))
    assert sum(thread.name.startswith("simo_merge") for thread in threading.enumerate()) == 1


def test_a_process_that_was_forked_reads_with_a_thread_of_its_own() -> None:
    list(load(Reader(DATA), PLAN))
    child = multiprocessing.get_context("fork").Process(target=lambda: list(load(Reader(DATA), PLAN)))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0


def test_worker_processes_are_not_begun_in_the_midst_of_reading() -> None:
    """A lock that is held at that moment would stay locked in them for ever."""
    busy, begun = threading.Lock(), threading.Event()

    def reading(item: int) -> Sample:
        with busy:
            begun.set()
            time.sleep(0.2)
            return DATA[item]

    unfinished = load(reading, [[0], [1], [2], [3], [4]])
    next(unfinished)
    begun.clear()
    begun.wait(timeout=20)
    found: list[Batch] = []
    waiting = threading.Thread(target=lambda: found.extend(load(reading, [[0]], workers=1)), daemon=True)
    waiting.start()
    waiting.join(timeout=60)  # such a worker would never answer
    assert len(found) == 1
    unfinished.close()


def test_a_reader_survives_the_way_to_a_process_that_is_started_anew() -> None:
    again = pickle.loads(pickle.dumps(Reader(DATA)))
    assert torch.equal(again(3).image, DATA[3].image)


# -- errors -------------------------------------------------------------------------------------------------------


@WORKERS
def test_a_damaged_file_is_named_in_one_line(write: Write, workers: int) -> None:
    root = write({f"{i}": {"depth": np.full((4, 6), 1000, np.uint16)} for i in range(4)})
    damaged = root / "depth" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    loaded = load(Reader(FolderDataset(root)), [[0, 1], [3], [2]], workers)
    assert next(loaded).keys == ("0", "1")
    assert next(loaded).keys == ("3",)  # batches before it come to their use
    with pytest.raises(SimoError) as caught:
        next(loaded)
    assert str(caught.value).startswith(f"{damaged} cannot be read as a picture: ")
    assert "\n" not in str(caught.value)
    assert "worker" not in str(caught.value)


@WORKERS
def test_images_of_different_sizes_make_no_batch(workers: int) -> None:
    data = TinyData(3, (DEPTH,))
    data.samples[2] = TinyData(1, (DEPTH,), (48, 32)).samples[0]
    with pytest.raises(SimoError, match=r"^images of one batch differ in size"):
        list(load(Reader(data), [[0, 2]], workers))


@WORKERS
def test_any_other_error_names_the_sample_and_keeps_its_traceback(workers: int) -> None:
    with pytest.raises(RuntimeError) as caught:
        list(load(Reader(Failing(KeyError("nothing"))), [[0], [1, 2]], workers))
    assert str(caught.value) == "tiny (val), sample 'val-0-2': KeyError: 'nothing'"
    told = "".join(traceback.format_exception(caught.value))
    assert "raise self.error" in told
    assert "KeyError: 'nothing'" in told


class Stubborn(Exception):
    """Neither made from a message nor pickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("stubborn")
        self.open = threading.Lock()


@WORKERS
def test_an_error_that_cannot_leave_a_process_is_told_all_the_same(workers: int) -> None:
    with pytest.raises(RuntimeError, match=r"sample 'val-0-2': Stubborn: stubborn"):
        list(load(Reader(Failing(Stubborn(1, 2))), [[2]], workers))


@WORKERS
def test_what_the_operating_system_refuses_is_no_bug(workers: int) -> None:
    error = PermissionError(13, "Permission denied", "some.png")
    with pytest.raises(SimoError, match=r"sample 'val-0-2': PermissionError: .*Permission denied: 'some.png'"):
        list(load(Reader(Failing(error)), [[2]], workers))


def test_an_error_that_says_all_stays_as_it_is() -> None:
    error: Any = SimoError("depth/2.png: all of it")
    with pytest.raises(SimoError) as caught, naming(DATA, 2):
        raise error
    assert caught.value is error
