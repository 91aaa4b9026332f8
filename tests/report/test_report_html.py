from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from simo_merge.errors import SimoError
from simo_merge.report import Panel, PanelCell, Report, write_report
from simo_merge.report.methods import describe

BEST = "task-arithmetic+surgery-closed-form"
HOSTILE = """<script>alert("x")</script> & <img src=x onerror='y'>"""


class Page(HTMLParser):
    """Every start tag of a page with its attributes, and the text in between."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attributes}))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open[-1:]):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(tmp_path: Path, report: Report) -> str:
    path = tmp_path / "report.html"
    write_report(path, report)
    assert [child.name for child in tmp_path.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_every_row_is_in_the_table_with_a_readable_name(tmp_path: Path, report: Report) -> None:
    page = Page(written(tmp_path, report))
    assert [row["data-method"] for row in page.all("tr") if "data-method" in row] == [row.method for row in report.rows]
    for row in report.rows:
        text = describe(row.method)
        assert text.name in page.text
        assert text.explanation in page.text


def test_the_best_label_free_method_with_one_pass_is_marked(tmp_path: Path, report: Report) -> None:
    page = Page(written(tmp_path, report))
    marked = [row["data-method"] for row in page.all("tr") if "best" in row.get("class", "").split()]
    assert marked == [BEST]  # the per-block method scores higher with three passes, joint training with labels
    assert page.text.count("best without labels") == 1


def test_the_headlines_say_what_was_won_and_what_it_cost(tmp_path: Path, report: Report) -> None:
    text = Page(written(tmp_path, report)).text
    for expected in ("75 %", "of the loss won back", "3 → 1", "0.36 ×", "51 ms instead of 142 ms"):
        assert expected in text


def test_scores_have_units_directions_and_distance_to_the_expert(tmp_path: Path, report: Report) -> None:
    html = written(tmp_path, report)
    text = re.sub(r"\s+", " ", Page(html).text)
    for expected in ("mean IoU, % ↑", "absolute error, m ↓", "mean angle, ° ↓"):
        assert expected in text
    assert 'title="lower is better"' in html
    row = html.split(f'data-method="{BEST}"')[1].split("</tr>")[0]
    assert "54.0" in row
    assert "−10 %" in row  # mIoU 0.54 against 0.60
    assert "−20 %" in row  # depth 0.25 against 0.20: ratio 0.8


def test_rows_of_another_protocol_show_its_primary_metric(tmp_path: Path, report: Report) -> None:
    rmse = {"experts": 0.5, BEST: 1.0}
    rows = [
        replace(row, protocol="astmt", per_task=row.per_task | {"depth": {"rmse": rmse[row.method]}})
        for row in report.rows
        if row.method in rmse
    ]
    html = written(tmp_path, replace(report, rows=rows))
    assert "root mean square error, m ↓" in re.sub(r"\s+", " ", Page(html).text)
    row = html.split(f'data-method="{BEST}"')[1].split("</tr>")[0]
    assert "−50 %" in row


def test_missing_values_are_an_en_dash(tmp_path: Path, report: Report) -> None:
    html = written(tmp_path, report)
    row = html.split('data-method="ties+another-way"')[1].split("</tr>")[0]
    assert row.count("\N{EN DASH}") == 3  # depth, and delta in both forms
    assert not re.search(r"\bnan\b", Page(html).text, re.IGNORECASE)


def test_all_texts_are_escaped(tmp_path: Path, report: Report) -> None:
    hostile_row = replace(report.rows[1], method=HOSTILE)
    hostile_panel = Panel(HOSTILE, report.panels[0].image, [replace(report.panels[0].cells[0], row_label=HOSTILE)])
    hostile = replace(
        report,
        title=HOSTILE,
        verdict=HOSTILE,
        environment={HOSTILE: HOSTILE},
        rows=[*report.rows, hostile_row],
        alignment=[replace(row, method=HOSTILE, task=HOSTILE, tap=HOSTILE) for row in report.alignment],
        panels=[hostile_panel],
        clouds=[replace(cloud, task=HOSTILE, tap=HOSTILE) for cloud in report.clouds],
        errors=[hostile_panel],
        timings=[(HOSTILE, 1.0)],
        notes=[HOSTILE],
        commands=(HOSTILE,),
    )
    plain, attacked = Page(written(tmp_path, report)), Page(written(tmp_path, hostile))
    assert len(attacked.all("script")) == len(plain.all("script")) == 1
    assert all("onerror" not in attributes for _, attributes in attacked.tags)
    assert attacked.text.count('<script>alert("x")</script>') >= 10


def test_nothing_is_loaded_from_outside(tmp_path: Path, report: Report) -> None:
    page = Page(written(tmp_path, report))
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "poster", "data", "action", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
        if tag != "a":
            assert attributes.get("href", "data:").startswith("data:"), (tag, attributes)
    style = Path(write_report.__code__.co_filename).with_name("inline.css").read_text()
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy["content"]


def test_every_picture_has_an_alternative_text(tmp_path: Path, report: Report) -> None:
    pictures = Page(written(tmp_path, report)).all("img")
    cells = sum(len(panel.cells) + 1 for panel in [*report.panels, *report.photos, *report.errors])
    assert len(pictures) >= cells
    empty = [picture for picture in pictures if not picture["alt"]]
    assert len(empty) == 1  # the enlarged picture before anything was clicked


def test_headers_have_scope_and_headings_do_not_skip_levels(tmp_path: Path, report: Report) -> None:
    page = Page(written(tmp_path, report))
    assert all(header.get("scope") in {"col", "row"} for header in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = [link["href"][1:] for link in page.all("a") if link["href"].startswith("#")]
    assert set(anchors) <= set(ids)


def test_class_colours_are_in_the_legend(tmp_path: Path, report: Report) -> None:
    html = written(tmp_path, report)
    segmentation = report.tasks[0]
    for name, colour in zip(segmentation.classes, segmentation.colours, strict=True):
        assert re.search(rf"rgb\({' '.join(map(str, colour))}\)\"></span>{name}", html)


def test_a_report_of_nothing_is_still_a_page(tmp_path: Path) -> None:
    page = Page(written(tmp_path, Report("Empty", {}, [], [], [], [], [], [], [], "Nothing was run.")))
    assert "No model was evaluated." in page.text
    assert "Nothing was run." in page.text


def test_a_report_without_experts_or_calibration_has_no_made_up_numbers(tmp_path: Path, report: Report) -> None:
    page = Page(written(tmp_path, replace(report, rows=[report.rows[2]], forward_seconds=None)))
    assert "won back" not in page.text
    assert "→ 1" not in page.text


def test_seeds_are_told_apart_and_their_mean_decides(tmp_path: Path, report: Report) -> None:
    lucky = replace(report.rows[3], seed=1, delta_ratio=-1.0)  # mean of -1 and -23.3 is worse than -10
    page = Page(written(tmp_path, replace(report, rows=[*report.rows, lucky])))
    marked = {row["data-method"] for row in page.all("tr") if "best" in row.get("class", "").split()}
    assert marked == {BEST}
    assert "seed 1" in page.text


def test_splits_are_never_compared_with_one_another(tmp_path: Path, report: Report) -> None:
    other = [replace(row, split="val") for row in report.rows]
    html = written(tmp_path, replace(report, rows=[*report.rows, *other]))
    assert html.count('<table class="results"') == 2


def test_pictures_fit_their_budget(tmp_path: Path, report: Report) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (600, 800, 3), dtype=np.uint8)  # noise is what compresses worst
    cells = [PanelCell("depth", f"column {index}", noise) for index in range(16)]
    html = written(tmp_path, replace(report, panels=[Panel("Noise", noise, cells)]))
    assert len(html.encode()) < 6_000_000


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_a_picture_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SimoError, match="expected uint8"):
        PanelCell("depth", "truth", np.zeros(shape, dtype=np.uint8))


def test_a_cell_that_is_missing_is_an_en_dash(tmp_path: Path, report: Report) -> None:
    panel = report.panels[0]
    html = written(tmp_path, replace(report, panels=[replace(panel, cells=panel.cells[:-1])], photos=[]))
    assert html.count('<span class="missing">\N{EN DASH}</span>') == 1


def test_infinite_or_missing_alignment_does_not_break_the_plots(tmp_path: Path, report: Report) -> None:
    rows = [replace(row, explained_variance=-math.inf, cosine_distance=math.nan) for row in report.alignment]
    html = written(tmp_path, replace(report, alignment=rows))
    plots = html.split('id="features"')[1].split("<details>")[0]
    assert "nan" not in plots
    assert "inf" not in plots
