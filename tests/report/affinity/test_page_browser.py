"""The affinity page in a real browser: its pictures are drawn, it fits its window, and it asks for nothing outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from simo_merge.report.affinity import AffinityReport, write_affinity_report
from tests.browser import look

pytestmark = pytest.mark.browser

CHECK = """
const check = () => {
  const view = document.querySelector("iframe").contentWindow, page = view.document;
  const shown = (element) => element.getBoundingClientRect().width > 100;
  return {
    headings: [...page.querySelectorAll("h1, h2, h3")].map((heading) => heading.textContent.trim()),
    images: page.images.length,
    broken: [...page.images].filter((picture) => !decodes(picture)).map((picture) => picture.alt),
    drawings: [...page.querySelectorAll("svg")].map(shown),
    cells: page.querySelectorAll("td").length,
    overflow: page.documentElement.scrollWidth - view.innerWidth,
    resources: view.performance.getEntriesByType("resource").map((entry) => entry.name)
      .filter((name) => !name.startsWith("data:")),
    problems: view.problems,
  };
};
"""


@pytest.mark.parametrize("width", [400, 1280])
def test_the_affinity_page_works_in_a_browser(
    chromium: str, tmp_path: Path, report: AffinityReport, width: int
) -> None:
    write_affinity_report(tmp_path / "affinity", report)
    found, log = look(chromium, tmp_path / "affinity" / "index.html", tmp_path, width, CHECK)

    assert found["problems"] == []
    assert found["resources"] == [], "the page must need nothing else"
    assert found["broken"] == []
    assert found["images"] + len(found["drawings"]) >= 5  # two heat maps, a profile, the curves, the groupings
    assert all(found["drawings"])
    assert found["overflow"] <= 0, "the page is wider than its window"
    for measure in report.measures:
        assert any(measure in heading.lower() for heading in found["headings"]), found["headings"]
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
