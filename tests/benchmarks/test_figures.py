"""Figures hold every point of the results, and nothing else."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import draw_figures
from bench.chart import Mark, Panel, Series, chart
from bench.curves import AXES
from simo_merge.results import ResultRow, write_results
from tests.benchmarks.worlds import made_up

SVG = "{http://www.w3.org/2000/svg}"


def circles(text: str) -> list[tuple[float, float, str]]:
    found = ElementTree.fromstring(text).iter(f"{SVG}circle")
    return [(float(c.get("cx", "")), float(c.get("cy", "")), c.findtext(f"{SVG}title", "")) for c in found]


def budget_rows() -> list[ResultRow]:
    rows = [made_up("experts", 0, seed=s, fit_seconds=300.0) for s in (0, 1)]
    for seed in (0, 1):
        for steps in (10, 100, 1000):
            rows.append(made_up("joint-equal", -10 + math.log10(steps) + seed, steps=steps, seed=seed, labels=450))
            rows.append(made_up("m+head", -6.0 + seed, steps=steps, seed=seed, labels=100, fit_seconds=0.1 * steps))
        rows.append(made_up("m", -15, seed=seed))
        rows.append(made_up("m+surgery-closed-form", -7, seed=seed))
    return rows


def test_a_budget_has_a_panel_an_axis_and_a_point_for_each_number_of_steps() -> None:
    text = draw_figures.draw_budget(budget_rows())
    told = [title for _, _, title in circles(text)]
    assert len(told) == len(AXES) * (3 + 3 + 1)
    assert told.count("joint-equal: −8.5 % at 10") == 1
    assert not any(title.startswith(("experts", "m:")) for title in told)
    assert "stroke-dasharray" in text


def test_images_are_placed_by_their_number_and_means_are_over_seeds() -> None:
    rows = [
        made_up("m+head", -d, seed=s, labels=n, options={"fitted_to": n})
        for n, s, d in ((16, 0, 8), (16, 1, 6), (64, 0, 4), (64, 1, 4))
    ]
    (x1, y1, first), (x2, y2, second) = circles(draw_figures.draw_samples([*rows, made_up("m", -20)]))
    assert (first, second) == ("m+head: −7 % at 16", "m+head: −4 % at 64")
    assert x1 < x2
    assert y1 > y2  # less is lower


def test_subsets_of_one_size_are_one_point() -> None:
    names = ("a", "b", "c")
    rows = [
        made_up("m", -float(len(tasks)), tasks=tasks, per_task={t: {"abs": 1.0} for t in tasks})
        for tasks in (names[:2], names[1:], names)
    ]
    assert [title for *_, title in circles(draw_figures.draw_scaling(rows))] == ["m: −2 % at 2", "m: −3 % at 3"]


def test_a_re_alignment_that_was_fitted_to_the_largest_number_of_images_alone_is_a_point() -> None:
    def row(name: str, delta: float, images: int) -> ResultRow:
        return made_up(f"m+{name}", delta, images=images, options={"fitted_to": images})

    rows = [row("curve", -4, 16), row("curve", -2, 64), row("once", -1, 64), row("table", -3, 16), made_up("m", -9)]
    titles = [title for *_, title in circles(draw_figures.draw_realign(rows))]
    assert titles == ["m+curve: −4 % at 16", "m+curve: −2 % at 64", "m+once: −1 % at 64"]
    assert draw_figures.draw_realign([row("table", -3, 16), made_up("m", -9)]) == ""


def test_points_on_a_logarithmic_axis_lie_evenly_for_equal_factors() -> None:
    series = Series("a", tuple(Mark(x, -1.0) for x in (1, 10, 100)))
    first, second, third = (x for x, *_ in circles(chart([Panel("", "steps", (series,))], "Δ")))
    assert second - first == pytest.approx(third - second, abs=0.02)


def test_one_point_alone_can_be_drawn() -> None:
    for log in (True, False):
        assert len(circles(chart([Panel("", "x", (Series("a", (Mark(5, 0.0),)),), log)], "Δ"))) == 1


def test_everything_lies_inside_the_picture() -> None:
    text = draw_figures.draw_budget(budget_rows())
    width, height = (float(v) for v in re.findall(r'viewBox="0 0 (\S+) (\S+)"', text)[0])
    panel = width / len(AXES)
    assert all(0 < x < panel and 0 < y < height for x, y, _ in circles(text))


def test_a_figure_is_drawn_once_and_checked_against_its_results(tmp_path: Path) -> None:
    results, figures = tmp_path / "results", tmp_path / "figures"
    write_results(results / "budget-rooms.json", {}, budget_rows())
    (results / "budget-rooms-crossings.json").write_text("[]")
    where = ["--results", str(results), "--figures", str(figures)]
    assert draw_figures.main([*where, "--check"]) == 1
    assert draw_figures.main(where) == 0
    assert [path.name for path in figures.iterdir()] == ["budget-rooms.svg"]
    assert draw_figures.main([*where, "--check"]) == 0
    write_results(results / "budget-rooms.json", {}, budget_rows()[:-3])
    assert draw_figures.main([*where, "--check"]) == 1


def test_names_in_the_legend_do_not_run_into_one_another() -> None:
    names = [f"task-arithmetic+a-long-name-{index}" for index in range(5)]
    text = chart([Panel("", "images", tuple(Series(name, (Mark(1, 0.0),)) for name in names))], "Δ")
    width = float(re.findall(r'viewBox="0 0 (\S+) ', text)[0])
    places = [t for t in ElementTree.fromstring(text).iter(f"{SVG}text") if t.text in names]
    rows: dict[str, list[float]] = {}
    for place in places:
        rows.setdefault(place.get("y", ""), []).append(float(place.get("x", "")))
    wide = 6.0 * len(names[0])  # at 12 pixels a letter is narrower, on average
    for starts in rows.values():
        assert all(after - before > wide for before, after in itertools.pairwise(sorted(starts)))
        assert max(starts) + wide < width
    assert len(places) == 5
