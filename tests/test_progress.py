"""Progress passes everything through, draws a bar on a terminal, and writes a line now and then in a log."""

from __future__ import annotations

import io
import logging

import pytest

from simo_merge.progress import progress


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("simo_merge.progress.time.monotonic", clock)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    return clock


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_every_item_is_passed_on_in_order(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    assert list(progress(iter("abc"), 3, "letters")) == ["a", "b", "c"]


def test_a_log_has_a_line_every_twenty_seconds_with_the_time_left(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "simo_merge.progress")
    for _ in progress(range(6), 6, "training", status=lambda: "loss 0.5"):
        clock.now += 15.0
    assert caplog.messages == [
        "training: 2 of 6, about 60 s left, loss 0.5",
        "training: 4 of 6, about 30 s left, loss 0.5",
    ]


def test_a_loop_that_goes_on_counts_what_was_done_but_not_its_time(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "simo_merge.progress")
    for _ in progress(range(2), 10, "training", start=6):
        clock.now += 20.0
    assert caplog.messages == [
        "training: 7 of 10, about 60 s left",
        "training: 8 of 10, about 40 s left",
    ]


def test_a_short_loop_says_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "simo_merge.progress")
    for _ in progress(range(3), 3, "training"):
        clock.now += 1.0
    assert caplog.messages == []


def test_nothing_is_logged_after_the_last_item(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "simo_merge.progress")
    for _ in progress(range(1), 1, "training"):
        clock.now += 100.0
    assert caplog.messages == []


def test_a_terminal_shows_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "simo_merge.progress")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    list(progress(range(3), 5, "training", start=2, status=lambda: "loss 0.5"))
    assert "training" in terminal.getvalue()
    assert "2/5" in terminal.getvalue()
    assert caplog.messages == []


def test_items_are_drawn_one_at_a_time(clock: Clock) -> None:
    drawn: list[int] = []
    steps = progress((drawn.append(i) or i for i in range(3)), 3, "training")  # type: ignore[func-returns-value]
    assert next(steps) == 0
    assert drawn == [0]
