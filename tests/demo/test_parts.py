"""What the demo says and measures: stages, seconds of a forward pass, photographs, the outcome in words."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor, nn

from simo_merge.demo import photos, stages, summary, timing
from simo_merge.demo.photos import PHOTOGRAPHS, photographs
from simo_merge.errors import SimoError
from simo_merge.results import ResultRow
from simo_merge.selection import Selection
from tests.report.conftest import make_row
from tests.tiny import DEPTH, TinyData


class Clock:
    """A clock that only what is timed moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stages, "time", clock)
    monkeypatch.setattr(timing, "time", clock)
    return clock


# -- stages -----------------------------------------------------------------------------------------------------


def test_stages_are_announced_and_timed(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = stages.Stages()
    for name, seconds in (("merge", 2.0), ("re-align", 3.5)):
        with run(name, "a moment"):
            assert caplog.messages[-1].endswith(f"{name} (a moment)")
            clock.now += seconds
    assert run.timings == [("merge", 2.0), ("re-align", 3.5)]
    assert run.total == 5.5
    assert caplog.messages == ["1. merge (a moment)", "   done in 2 s", "2. re-align (a moment)", "   done in 4 s"]


def test_a_stage_that_fails_is_not_called_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = stages.Stages()
    with pytest.raises(SimoError, match="no"), run("merge", "a moment"):
        raise SimoError("no")
    assert run.timings == []
    assert caplog.messages == ["1. merge (a moment)"]


# -- seconds of a forward pass ----------------------------------------------------------------------------------


class Slow(nn.Module):
    """Takes the given seconds, one after another, and keeps the last."""

    def __init__(self, clock: Clock, *seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, list(seconds)

    def forward(self, images: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        self.clock.now += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        return images


def test_the_median_is_taken_and_the_first_pass_only_warms_up(clock: Clock) -> None:
    experts = [Slow(clock, 100.0, 1.0), Slow(clock, 2.0), Slow(clock, 3.0)]
    model = Slow(clock, 100.0, 50.0, 1.5)
    found = timing.forward_seconds(experts, model, torch.zeros(1, 3, 2, 2), repeats=3)  # type: ignore[arg-type]
    assert found == (6.0, 1.5)


# -- photographs ------------------------------------------------------------------------------------------------


def test_the_photographs_come_in_the_size_asked_for() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    found = photographs(64)
    assert found.keys() == PHOTOGRAPHS.keys()
    assert {max(image.shape[-2:]) for image in found.values()} == {64}
    for title in found:
        assert title in photos.CREDITS.lower() or title in ("china",)


def test_without_the_packages_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PHOTOGRAPHS, "more", ("no_such_package", "data/more.png"))
    with pytest.raises(SimoError, match=r"pip install simo-merge\[photos\]"):
        photographs(16)


# -- the outcome in words ---------------------------------------------------------------------------------------


def rows(before: float, after: float) -> list[ResultRow]:
    return [
        make_row("experts", 0.6, 0.2, 12.0, 0.0),
        make_row(summary.MERGED, 0.4, 0.4, 20.0, before),
        make_row(summary.SHOWN, 0.5, 0.3, 14.0, after, fit_seconds=2.5),
    ]


@pytest.mark.parametrize(
    ("before", "after", "share"), [(-40.0, -10.0, 0.75), (-40.0, -40.0, 0.0), (-40.0, -50.0, -0.25), (-20.0, 5.0, 1.25)]
)
def test_the_share_won_back(before: float, after: float, share: float) -> None:
    assert summary.won_back(rows(before, after)) == pytest.approx(share)


@pytest.mark.parametrize("before", [0.0, 6.0, math.nan])
def test_there_is_no_share_of_a_loss_that_is_none(before: float) -> None:
    assert math.isnan(summary.won_back(rows(before, -2.5)))
    said = summary.verdict(rows(before, -2.5), (0.4, 0.1))
    assert "no loss to win back" in said
    assert "nan" not in said
    assert said.endswith("one forward pass takes 25 % of the experts' time.")


def test_the_verdict_has_the_numbers() -> None:
    said = summary.verdict(rows(-40.0, -10.0), (0.4, 0.1))
    assert said == (
        "Merging three experts into one encoder costs 40.0 % of their performance; closed-form surgery, fitted without "
        "labels in 2.5 s, wins back 75 % of that loss (delta -10.0 %), and one forward pass takes 25 % of the experts' "
        "time."
    )


def test_the_notes_say_how_the_numbers_were_obtained() -> None:
    splits = {name: TinyData(count, (DEPTH,)) for name, count in {"train": 9, "calibration": 7, "test": 5}.items()}
    said = " ".join(summary.notes(Selection(0.4, {0.3: 0.5, 0.4: 0.625}, "agreement"), splits))
    assert "9 labelled images trained each expert, 7 other images were used for calibration" in said
    assert "on 5 images that nothing was fitted or chosen on" in said
    assert "0.4, was chosen by agreement (0.3: 0.500, 0.4: 0.625); no label was used" in said
    assert photos.CREDITS in said
