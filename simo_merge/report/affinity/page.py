"""The affinity report on disk: a page, its pictures as SVG and PNG, tables as CSV, and all of it as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from simo_merge.report import numbers
from simo_merge.report.affinity.contents import AffinityReport, joined
from simo_merge.report.affinity.curves import lambda_curves
from simo_merge.report.affinity.drawing import Drawing
from simo_merge.report.affinity.groups import grouping_picture
from simo_merge.report.affinity.heat_map import heat_map
from simo_merge.report.affinity.profile import layer_profile
from simo_merge.report.affinity.shades import digits
from simo_merge.results import replace_text

PAGE, VALUES, PICTURES, TABLES = "index.html", "affinity.json", "pictures", "tables"
_FOLDER = Path(__file__).parent


def write_affinity_report(folder: str | Path, report: AffinityReport) -> None:
    """Write `index.html`, `affinity.json`, `pictures/NAME.svg` and `.png`, and `tables/MEASURE.csv` into a folder.

    The page holds its pictures and needs no other file. Files are named by what they show: a measure's name, that name
    with `-layers`, `lambda-curves`, and `grouping-K`.
    """
    folder = Path(folder)
    drawn = drawings(report)
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    for name, drawing in drawn.items():
        replace_text(folder / PICTURES / f"{name}.svg", drawing.svg())
        Image.fromarray(drawing.pixels()).save(folder / PICTURES / f"{name}.png")
    for name, matrix in report.measures.items():
        matrix.save_csv(folder / TABLES / f"{name}.csv")
    replace_text(folder / VALUES, json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n")
    replace_text(folder / PAGE, render(report, drawn))


def drawings(report: AffinityReport) -> dict[str, Drawing]:
    """Every picture of a report, by the name of its files."""
    found = {f"grouping-{grouping.encoders}": grouping_picture(grouping) for grouping in report.decision}
    for name, matrix in report.measures.items():
        found[name] = heat_map(matrix)
        if matrix.profile:
            found[f"{name}-layers"] = layer_profile(matrix)
    return found if report.sweep is None else found | {"lambda-curves": lambda_curves(report.sweep)}


def render(report: AffinityReport, drawn: Mapping[str, Drawing]) -> str:
    """The page as HTML, with the pictures inside."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_FOLDER.parent / "inline.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        report=report,
        pictures={name: Markup(drawing.svg()) for name, drawing in drawn.items()},
        style=Markup(style),
        joined=joined,
        digits=digits,
        seconds=numbers.seconds,
    )
