"""Searching with Optuna: a known optimum, a study taken up again, and two processes that share one."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from simo_merge.errors import SimoError
from simo_merge.merging import AdaMerging, Breadcrumbs, TaskArithmetic, Ties
from simo_merge.models import SingleTaskModel
from simo_merge.selection import Agreement, Candidate, Range, Search, ValidationDelta, select
from simo_merge.selection.candidates import best, grid
from simo_merge.weights import Base
from tests.tiny import TinyData, labelled_by

pytest.importorskip("optuna")
SPACE: Mapping[str, Any] = {"x": Range(-1.0, 2.0), "n": Range(1, 5), "kind": ["a", "b"]}


def hill(options: Mapping[str, Any]) -> Candidate:
    """The top, 0, is at x = 0.4, n = 3, kind b."""
    score = -((options["x"] - 0.4) ** 2) - abs(options["n"] - 3) - (options["kind"] == "a")
    return Candidate(dict(options), score, 0.01)


def test_it_finds_the_top_of_a_hill() -> None:
    found = Search(SPACE, trials=60, seed=1).run(hill)
    assert len(found) == 60
    top = best(found, "height")
    assert top.options["x"] == pytest.approx(0.4, abs=0.2)
    assert (top.options["n"], top.options["kind"]) == (3, "b")
    assert all(-1 <= c.options["x"] <= 2 and isinstance(c.options["n"], int) for c in found)
    assert all(c.seconds == 0.01 for c in found)
    assert len({c.options["x"] for c in found}) == 60  # every trial draws anew


def test_equal_seeds_search_alike_and_others_do_not() -> None:
    first, again, other = (Search(SPACE, trials=15, seed=seed).run(hill) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_study_that_is_taken_up_again_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = Search(SPACE, trials=13, seed=1).run(hill)
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    Search(SPACE, trials=7, storage=storage, study="hill", seed=1).run(hill, {"about": "a hill"})
    assert Search(SPACE, trials=13, storage=storage, study="hill", seed=1).run(hill, {"about": "a hill"}) == whole
    calls: list[object] = []

    def counted(options: Mapping[str, Any]) -> Candidate:
        calls.append(options)
        return hill(options)

    assert len(Search(SPACE, trials=13, storage=storage, study="hill", seed=1).run(counted, {"about": "a hill"})) == 13
    assert not calls


def test_a_stored_study_about_something_else_is_refused(tmp_path: Path) -> None:
    search = Search(SPACE, trials=2, storage=f"sqlite:///{tmp_path / 'study.db'}", study="hill")
    search.run(hill, {"method": "ties", "images": "rooms"})
    with pytest.raises(SimoError, match=r"about something else: its images differ \(rooms there, nyuv2 here\)"):
        search.run(hill, {"method": "ties", "images": "nyuv2"})


def test_a_candidate_that_fails_does_not_count_and_one_without_a_finite_score_does(tmp_path: Path) -> None:
    search = Search({"x": Range(0.0, 1.0)}, trials=3, storage=f"sqlite:///{tmp_path / 'study.db'}", study="s")

    def broken(options: Mapping[str, Any]) -> Candidate:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        search.run(broken)
    scores = iter([math.nan, 1.0, 2.0])
    found = search.run(lambda options: Candidate(dict(options), next(scores), 0.0))
    assert [c.score for c in found[1:]] == [1.0, 2.0]
    assert math.isnan(found[0].score)
    assert best(found, "x").score == 2.0


WORKER = """
import sys, time
from simo_merge.selection import Candidate, Range, Search
def slow(options):
    time.sleep(0.02)
    return Candidate({**options, "who": sys.argv[2]}, -(options["x"] - 0.4) ** 2, 0.02)
print(len(Search({"x": Range(-1.0, 2.0)}, trials=24, storage=sys.argv[1], study="shared", seed=3).run(slow)))
"""


@pytest.mark.slow
def test_two_processes_search_together(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, storage, who], stdout=subprocess.PIPE, text=True)
        for who in ("one", "two")
    ]
    told = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert all(24 <= int(count) <= 25 for count in told)
    found = Search({"x": Range(-1.0, 2.0)}, trials=24, storage=storage, study="shared", seed=3).run(hill)
    assert 24 <= len(found) <= 25
    assert {c.options["who"] for c in found} == {"one", "two"}
    assert len({c.options["x"] for c in found}) == len(found)  # they do not draw the same


def test_it_chooses_the_scale_of_a_merge(base: Base, equal: list[SingleTaskModel], tmp_path: Path) -> None:
    search = Search({"scale": Range(0.0, 1.0)}, trials=12, storage=f"sqlite:///{tmp_path / 's.db'}", study="scale")
    found = select(equal, TaskArithmetic(), search, Agreement(TinyData(3)), base)
    assert found.options["scale"] == pytest.approx(0.5, abs=0.12)
    assert found.method == TaskArithmetic(found.options["scale"])
    assert len(found.candidates) == 12
    with pytest.raises(SimoError, match="its images differ"):
        select(equal, TaskArithmetic(), search, Agreement(TinyData(4)), base)


def test_a_stored_study_is_refused_where_anything_changed_that_its_scores_depend_on(
    base: Base, equal: list[SingleTaskModel], images: TinyData, tmp_path: Path
) -> None:
    search = Search({"initial": [0.5]}, trials=1, storage=f"sqlite:///{tmp_path / 's.db'}", study="s")
    method, validation = AdaMerging(steps=1), labelled_by(equal, images)

    def ask(data: TinyData = validation, protocol: str = "pooled", images: TinyData = images, **more: Any) -> object:
        return select(equal, method, search, ValidationDelta(data, protocol), base, images, **more)

    ask()
    ask()
    for changed, name in (
        ({"protocol": "libmtl"}, "protocol"),
        ({"seed": 1}, "seed"),
        ({"precision": "bfloat16"}, "precision"),
        ({"images": TinyData(6, seed=1)}, "calibration"),
        ({"data": labelled_by(equal, TinyData(6, seed=1))}, "images"),
    ):
        with pytest.raises(SimoError, match=f"about something else: its {name} differ "):
            ask(**changed)  # type: ignore[arg-type]


def test_a_combination_that_the_method_refuses_costs_a_trial_and_not_the_search(
    base: Base, equal: list[SingleTaskModel], caplog: pytest.LogCaptureFixture
) -> None:
    search = Search({"outliers": [0.2, 0.6], "smallest": [0.1, 0.5]}, trials=12, seed=1)
    with caplog.at_level(logging.WARNING, "simo_merge"):
        found = select(equal, Breadcrumbs(scale=0.5), search, Agreement(TinyData(2)), base)
    refused = [c for c in found.candidates if c.options == {"outliers": 0.6, "smallest": 0.5}]
    assert refused
    assert all(math.isnan(c.score) for c in refused)
    assert all(math.isfinite(c.score) for c in found.candidates if c not in refused)
    assert "left out, outliers=0.6, smallest=0.5: breadcrumbs would drop everything" in caplog.text


def test_a_search_of_which_every_candidate_is_refused_says_why(base: Base, equal: list[SingleTaskModel]) -> None:
    search = Search({"density": Range(2.0, 3.0)}, trials=2)
    with pytest.raises(SimoError, match=r"ties refuses every candidate of the search, the last because the density"):
        select(equal, Ties(), search, Agreement(TinyData(2)), base)
    with pytest.raises(SimoError, match="ties has no option 'dense'; it has density"):
        select(equal, Ties(), Search({"dense": Range(0.0, 1.0)}), Agreement(TinyData(2)), base)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Search({}), "no option was named"),
        (lambda: Search({"scale": 0.3}), "option 'scale' needs a list of values to try, got 0.3"),  # type: ignore[dict-item]
        (lambda: Search({"combine": "mean"}), r"'combine' needs a list .*, got 'mean'; write \['mean'\] for one value"),
        (lambda: grid({"scale": Range(0.0, 1.0)}), r"'scale' needs a list .*, got Range.* give a Range to a Search"),  # type: ignore[dict-item]
        (lambda: grid({"combine": "mean"}), "option 'combine' needs a list of values to try, got 'mean'"),
        (lambda: Search({"scale": []}), "option 'scale' has no values"),
        (lambda: Search({"scale": [1]}, trials=0), "1 trial or more, got 0"),
        (lambda: Search({"scale": [1]}, storage="sqlite:///a.db"), r"sqlite:///a.db may hold many studies; name this"),
        (lambda: Range(1.0, 1.0), "the lower one first, got 1.0 and 1.0"),
        (lambda: Range(0.0, math.inf), "two finite ends"),
        (lambda: Range(0.0, 1.0, log=True), "begins above 0, got 0.0"),
    ],
)
def test_searches_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(SimoError, match=message):
        make()


def test_without_optuna_the_way_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SimoError, match=r"pip install 'simo_merge\[search\]'"):
        Search({"x": [1]}).run(hill)
