"""The report: one static HTML file that needs nothing but itself."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from simo_merge.report import clouds, diagram, figures, numbers
from simo_merge.report.contents import Report
from simo_merge.report.methods import EXPERTS, FAMILIES, describe, family
from simo_merge.report.panels import error_scale, hero, legends, view_panels
from simo_merge.report.summary import Group, group_rows, headlines
from simo_merge.results import ResultRow, replace_text
from simo_merge.tasks import Task

_FOLDER = Path(__file__).parent


def write_report(path: str | Path, report: Report) -> None:
    """Write the report as one HTML file of a few megabytes: no script, style, font or picture from outside.

    All texts are escaped. The file appears under its name only when it is complete.

    Args:
        path: where the file goes, as `report.html`; missing folders are made.
        report: what it shows.
    """
    replace_text(path, render(report))


def render(report: Report) -> str:
    """Return the report's HTML."""
    groups = group_rows(report.rows)
    best = groups[0].best if groups else None
    columns = [row.method for row in report.rows]
    panels, photos, errors = view_panels([report.panels, report.photos, report.errors], columns, best)
    return (
        _templates()
        .get_template("template.html.j2")
        .render(
            report=report,
            groups=[(group, figures.delta_plot(group, report.tasks)) for group in groups],
            headlines=headlines(groups[0], report.forward_seconds) if groups else [],
            steps=diagram.steps([task.name for task in report.tasks]) if report.tasks else [],
            panels=panels,
            photos=photos,
            errors=errors,
            error_scale=error_scale() if errors else None,
            clouds=clouds.cloud_plots(report.clouds),
            legends=legends(report.tasks),
            hero=hero(panels),
            alignment=figures.alignment_plots(report.alignment, best),
            line_styles=figures.line_styles(report.alignment, best),
            longest_stage=max((seconds for _, seconds in report.timings), default=0.0),
            style=Markup((_FOLDER / "inline.css").read_text(encoding="utf-8")),
            script=Markup((_FOLDER / "inline.js").read_text(encoding="utf-8")),
        )
    )


@lru_cache(maxsize=1)
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(_vocabulary())
    return environment


def _vocabulary() -> dict[str, Any]:
    return {
        "MISSING": numbers.MISSING,
        "FAMILIES": FAMILIES,
        "alignment_cell": figures.alignment_cell,
        "count": numbers.count,
        "describe": describe,
        "family": family,
        "metric_text": numbers.metric_text,
        "metrics_of": _metrics_of,
        "percent": numbers.percent,
        "relative": _relative,
        "score": _score,
        "seconds": numbers.seconds,
        "several_seeds": _several_seeds,
        "short_count": numbers.short_count,
        "signed": numbers.signed,
    }


def _score(row: ResultRow, task: Task, metric: str) -> str:
    """A cell of the table: the number, or an en dash where the row has none."""
    return numbers.metric_text(task, metric).value(row.per_task.get(task.name, {}).get(metric, float("nan")))


def _relative(group: Group, row: ResultRow, task: Task) -> str:
    """The task's part of delta beside a score; empty for the experts themselves and where there is none."""
    primary = group.primary(task)
    score = row.per_task.get(task.name, {}).get(primary, float("nan"))
    text = numbers.percent(numbers.relative_gain(task, score, group.score(EXPERTS, task.name, primary)), digits=0)
    return "" if row.method == EXPERTS or text == numbers.MISSING else text


def _metrics_of(group: Group, task: Task) -> list[str]:
    """Every metric that some row of the group has for a task, in order."""
    return list(dict.fromkeys(metric for row in group.rows for metric in row.per_task.get(task.name, {})))


def _several_seeds(group: Group) -> bool:
    return len({row.seed for row in group.rows}) > 1
