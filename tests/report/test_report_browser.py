"""The report in a real browser: it renders, its pictures decode, no error is reported."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from simo_merge.report import Report, write_report

pytestmark = pytest.mark.browser

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=10000",
]

# Runs in the page before anything else of it: whatever goes wrong is collected.
WATCH = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push("error: " + event.message), true);
addEventListener("unhandledrejection", (event) => problems.push("rejection: " + event.reason));
addEventListener("securitypolicyviolation", (event) => problems.push("refused: " + event.blockedURI));
for (const level of ["error", "warn"]) {
  console[level] = (...words) => problems.push(level + ": " + words.join(" "));
}
</script>"""

# Runs in the page around it, which holds the report in a frame of a chosen width. All of it is synchronous:
# the page cannot be dumped before it is through; drawing on a canvas decodes a picture in full.
CHECK = """<script>
const report = (found) => {
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
};
const decodes = (picture) => {
  if (!picture.complete || !picture.naturalWidth) return false;
  const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight).getContext("2d");
  canvas.drawImage(picture, 0, 0);
  const pixels = canvas.getImageData(0, 0, picture.naturalWidth, picture.naturalHeight).data;
  return new Set(pixels).size > 2;
};
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
addEventListener("load", () => {
  try { report(check()); } catch (error) { report({problems: [String(error)]}); }
});
</script>"""


def look(chromium: str, page: Path, folder: Path, width: int) -> tuple[dict[str, Any], str]:
    """Open a copy of the page in a frame of that width; return what the check found and the browser's log."""
    watched = page.read_text(encoding="utf-8").replace("<title>", WATCH + "<title>", 1)
    frame = f'<iframe style="width: {width}px; height: 900px" srcdoc="{html.escape(watched)}"></iframe>'
    around = folder / f"around-{width}.html"
    around.write_text(f"<!doctype html><meta charset='utf-8'><body>{frame}{CHECK}</body>", encoding="utf-8")
    command = [chromium, *FLAGS, f"--user-data-dir={folder / f'profile-{width}'}", "--window-size=1600,1000"]
    done = subprocess.run(
        [*command, "--dump-dom", around.as_uri()], capture_output=True, text=True, timeout=180, check=False
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the check did not finish; status {done.returncode}, log: {done.stderr[-2000:]}"
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result, done.stderr


@pytest.mark.parametrize("width", [400, 1280])
def test_the_report_works_in_a_browser(chromium: str, tmp_path: Path, report: Report, width: int) -> None:
    page = tmp_path / "report.html"
    write_report(page, report)
    found, log = look(chromium, page, tmp_path, width)

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
