"""Progress of long loops: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from simo_merge.distributed import is_main

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_LOG_EVERY = 20.0  # seconds between lines when there is no terminal


def progress(
    items: Iterable[T], total: int, label: str, start: int = 0, status: Callable[[], str] | None = None
) -> Iterator[T]:
    """Pass `items` through, telling how far it is and how long it will take; of several processes one tells.

    Args:
        items: what to iterate over.
        total: how many there are, counting the `start` that are done already.
        label: what the loop does.
        start: items done before.
        status: a short text (the loss) to show beside the progress.
    """
    if not is_main():
        yield from items
        return
    if sys.stderr.isatty():
        bar = tqdm(total=total, initial=start, desc=label, leave=False, mininterval=0.5)
        with bar:
            for item in items:
                yield item
                bar.update()
                if status is not None:
                    bar.set_postfix_str(status(), refresh=False)
        return
    began = last = time.monotonic()
    for done, item in enumerate(items, start=start + 1):
        yield item
        now = time.monotonic()
        if now - last >= _LOG_EVERY and done < total:
            remaining = (now - began) / (done - start) * (total - done)
            note = f", {status()}" if status is not None else ""
            _LOG.info("%s: %d of %d, about %.0f s left%s", label, done, total, remaining, note)
            last = now
