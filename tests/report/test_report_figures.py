from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simo_merge.metrics import delta_ratio
from simo_merge.report import Report
from simo_merge.report.diagram import steps
from simo_merge.report.figures import alignment_plots, delta_plot, line_styles
from simo_merge.report.methods import describe, family
from simo_merge.report.numbers import count, percent, relative_gain, seconds, short_count, signed
from simo_merge.report.summary import group_rows
from simo_merge.report.svg import Scale, element, round_scale

BEST = "task-arithmetic+surgery-closed-form"


def test_svg_is_well_formed_and_escaped() -> None:
    tree = ElementTree.fromstring(element("text", "a < b & c", class_='x"y', stroke_width=1.23456))
    assert tree.text == "a < b & c"
    assert tree.attrib == {"class": 'x"y', "stroke-width": "1.23"}


@given(
    low=st.floats(-1e4, 1e4),
    span=st.floats(1e-3, 1e4),
    about=st.integers(2, 8),
)
@example(low=-1.0, span=202.0, about=2)
def test_a_round_scale_covers_its_range_and_ends_on_ticks(low: float, span: float, about: int) -> None:
    scale = round_scale(low, low + span, 0.0, 100.0, about)
    slack = 1e-6 * max(abs(low), span, 1.0)
    assert scale.low <= low + slack
    assert scale.high >= low + span - slack
    ticks = scale.ticks(about)
    assert 2 <= len(ticks) <= 2 * about + 2
    assert all(-1e-6 <= scale(tick) <= 100 + 1e-6 for tick in ticks)


def test_an_axis_no_wider_than_rounding_has_its_ends_as_ticks() -> None:
    low, high = 8686524225429688.0, 8686524225429689.0
    assert Scale(low, high, 0.0, 100.0).ticks(5) == [low, high]


def test_bars_are_as_long_as_delta(report: Report) -> None:
    (group,) = group_rows(report.rows)
    plot = delta_plot(group, report.tasks)
    widths = {}
    for bar in plot.bars:
        tree = ElementTree.fromstring(bar.svg)
        found = tree.find("rect")
        if found is not None:
            widths[bar.name] = float(found.attrib["width"].rstrip("%"))
    expected = {describe(row.method).name: row.delta_ratio for row in report.rows if row.method != "experts"}
    scale = widths["Task arithmetic"] / 40.0
    assert widths == {
        name: pytest.approx(-delta * scale, abs=0.02) for name, delta in expected.items() if not math.isnan(delta)
    }
    assert [bar.name for bar in plot.bars if bar.best] == [describe(BEST).name]


def test_the_marks_of_a_bar_average_to_delta(report: Report) -> None:
    (group,) = group_rows(report.rows)
    higher = {task.name: task.higher_is_better for task in report.tasks}

    def primary(method: str) -> dict[str, float]:
        return {task.name: group.score(method, task.name, task.primary) for task in report.tasks}

    gains = [relative_gain(task, primary(BEST)[task.name], primary("experts")[task.name]) for task in report.tasks]
    assert sum(gains) / 3 == pytest.approx(delta_ratio(primary(BEST), primary("experts"), higher))


def test_alignment_has_one_plot_per_task_and_a_line_per_method(report: Report) -> None:
    plots = alignment_plots(report.alignment, BEST)
    assert len(plots) == 2
    for measure in plots:
        assert [task for task, _ in measure.plots] == ["segmentation", "depth", "normals"]
        for _, svg in measure.plots:
            lines = ElementTree.fromstring(svg).findall(".//polyline")
            assert len(lines) == 2
            assert all(len(line.attrib["points"].split()) == 4 for line in lines)
    assert alignment_plots([], None) == []


def test_the_best_method_keeps_its_colour_and_only_merges_are_dashed(report: Report) -> None:
    extra = replace(report.alignment[0], method="ties")
    styles = line_styles([*report.alignment, extra], BEST)
    assert styles["task-arithmetic"] == "merged before"
    assert styles[BEST] == "realigned"
    assert styles["ties"].endswith(" before")
    assert len(set(styles.values())) == 3


@pytest.mark.parametrize("names", [["depth"], ["a", "b", "c", "d", "e"], ["a_very_long_task_name", "<b>"]])
def test_the_drawings_show_every_task(names: list[str]) -> None:
    drawn = steps(names)
    assert len(drawn) == 3
    for step in drawn:
        texts = [text.text for text in ElementTree.fromstring(step.svg).iter("text")]
        assert set(names) <= set(texts)
    encoders = [len(re.findall(r">encoder<", step.svg)) for step in drawn]
    assert encoders == [len(names), 1, 1]


def test_methods_are_described_for_people(report: Report) -> None:
    assert describe("task-arithmetic+surgery").name == "Task arithmetic + surgery"
    assert describe("tsv-m+encoder-norms+surgery").short == "+ encoder norms + surgery"
    assert describe("brand-new_method+other").name == "Brand new method + other"
    families = {row.method: family(row) for row in report.rows}
    assert families["experts"] == families["base"] == "reference"
    assert families["task-arithmetic"] == "merged"
    assert families[BEST] == "realigned"
    assert families["joint-equal"] == "labelled"


def test_numbers_are_printed_for_people() -> None:
    assert percent(-27.46) == "\N{MINUS SIGN}27.5 %"
    assert signed(-0.01) == "0.0"
    assert signed(3.0) == "+3.0"
    assert percent(math.nan) == "\N{EN DASH}"
    assert short_count(295_000) == "295 k"
    assert short_count(22_100_000) == "22.1 M"
    assert short_count(12) == "12"
    assert count(12_345) == "12\N{NARROW NO-BREAK SPACE}345"
    assert [seconds(value) for value in (0.354, 12.44, 412.0, 9000.0)] == [
        "0.35 s",
        "12.4 s",
        "6.9 min",
        "2.5 h",
    ]
