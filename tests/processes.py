"""Two processes that share work over gloo, as a launcher starts them, on this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable
from multiprocessing import connection as sentinel
from typing import Any

import torch

ROOM = 300.0  # seconds until processes that wait for each other are given up
_CONTEXT = multiprocessing.get_context("forkserver")  # it imports once; and no process inherits autograd's threads
_CONTEXT.set_forkserver_preload(["tests.processes", "simo_merge", "accelerate", "tests.tiny", "tests.named"])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launched(rank: int, count: int, port: int) -> dict[str, str]:
    """The environment that torchrun gives a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def share_work(work: Callable[..., Any], *arguments: Any, count: int = 2) -> list[Any]:
    """What `work` (a function of a module) returns in each of `count` processes, or the exception that it raises."""
    pipes, children = _started(work, arguments, count)
    try:
        found = []
        for ours in pipes:
            assert ours.poll(ROOM), "the processes wait for each other"
            found.append(pickle.loads(ours.recv_bytes()))
    finally:
        for child in children:
            child.join(5)
            child.kill()
    return found


def killed(work: Callable[..., Any], *arguments: Any, count: int = 1) -> None:
    """Run work that ends in a SIGKILL of one process; the others are then killed too, as torchrun does."""
    _, children = _started(work, arguments, count)
    found = sentinel.wait([child.sentinel for child in children], ROOM)
    for child in children:
        child.kill()
        child.join(ROOM)
    assert found, "nobody was killed"
    assert {child.exitcode for child in children} == {-signal.SIGKILL}


def _started(work: Callable[..., Any], arguments: tuple[Any, ...], count: int) -> tuple[list[Any], list[Any]]:
    port = free_port()
    pipes, children = [], []
    for rank in range(count):
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        child = _CONTEXT.Process(target=_child, args=(theirs, launched(rank, count, port), work, arguments))
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)
    return pipes, children


def _child(pipe: Any, environment: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    torch.manual_seed(0)
    import simo_merge.distributed

    try:
        found = work(*arguments)
    except Exception as error:
        error.add_note(traceback.format_exc())
        found = error
    pipe.send_bytes(pickle.dumps(found))  # by value: `send` would share the memory of a process that ends
    pipe.close()
    simo_merge.distributed.end()
