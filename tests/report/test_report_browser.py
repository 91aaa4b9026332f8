"""The report in a real browser: it renders, its pictures decode, no error is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from simo_merge.report import Report, write_report
from tests.browser import look

pytestmark = pytest.mark.browser

CHECK = """
const check = () => {
  const view = document.querySelector("iframe").contentWindow, page = view.document;
  const pictures = [...page.images].filter((picture) => !picture.closest("dialog"));
  const found = {
    rows: [...page.querySelectorAll("table.results tbody tr")].map((row) => row.dataset.method),
    rowsVisible: [...page.querySelectorAll("table.results tbody tr")].every((row) => row.offsetHeight > 10),
    pictures: pictures.length,
    broken: pictures.filter((picture) => !decodes(picture)).map((picture) => picture.alt),
    figures: [...page.querySelectorAll("main svg")].map((svg) => svg.getBoundingClientRect().width > 20),
    overflow: page.documentElement.scrollWidth - view.innerWidth,
    resources: view.performance.getEntriesByType("resource").map((entry) => entry.name)
      .filter((name) => !name.startsWith("data:")),
  };
  const dialog = page.querySelector("dialog"), large = dialog.querySelector("img");
  const press = (key) => dialog.dispatchEvent(new view.KeyboardEvent("keydown", {key, bubbles: true}));
  found.enlarged = [];
  page.querySelector(".panel-row button").click();
  found.open = dialog.open;
  for (const key of ["", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowLeft"]) {
    if (key) press(key);
    found.enlarged.push(large.alt);
  }
  dialog.querySelector(".close").click();
  found.closed = !dialog.open;
  found.problems = view.problems;
  return found;
};
"""


@pytest.mark.parametrize("width", [400, 1280])
def test_the_report_works_in_a_browser(chromium: str, tmp_path: Path, report: Report, width: int) -> None:
    page = tmp_path / "report.html"
    write_report(page, report)
    found, log = look(chromium, page, tmp_path, width, CHECK)

    assert found["problems"] == []
    assert found["rows"] == [row.method for row in report.rows]
    assert found["rowsVisible"]
    assert found["pictures"] >= sum(len(panel.cells) + 1 for panel in [*report.panels, *report.photos])
    assert found["broken"] == []
    assert found["figures"]
    assert all(found["figures"])
    assert found["overflow"] <= 0, "the page is wider than its window"
    assert found["resources"] == []

    assert found["open"]
    assert found["closed"]
    first, right, down, left, image = found["enlarged"]
    assert first.startswith("Room 1: segmentation, truth")
    assert right.startswith("Room 1: segmentation, Single-task experts")
    assert down.startswith("Room 1: depth, Single-task experts")
    assert left.startswith("Room 1: depth, truth")
    assert image.endswith("the image that was given")

    console = [line for line in log.splitlines() if "CONSOLE" in line]
    assert console == []
