"""A page in a real browser: shown in a frame of a chosen width, and looked at by a script around it."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

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

# Runs in the page around it, which holds the page in a frame of a chosen width, and is followed by a test's own
# `const check = () => ...`. All of it is synchronous: the page cannot be dumped before it is through; drawing on a
# canvas decodes a picture in full.
AROUND = """
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
addEventListener("load", () => {
  try { report(check()); } catch (error) { report({problems: [String(error)]}); }
});
"""


def look(chromium: str, page: Path, folder: Path, width: int, check: str) -> tuple[dict[str, Any], str]:
    """Open a copy of the page in a frame of that width; return what the script `check` found and the browser's log."""
    watched = page.read_text(encoding="utf-8").replace("<title>", WATCH + "<title>", 1)
    frame = f'<iframe style="width: {width}px; height: 900px" srcdoc="{html.escape(watched)}"></iframe>'
    around = folder / f"around-{width}.html"
    around.write_text(
        f"<!doctype html><meta charset='utf-8'><body>{frame}<script>{AROUND}{check}</script></body>", encoding="utf-8"
    )
    command = [chromium, *FLAGS, f"--user-data-dir={folder / f'profile-{width}'}", "--window-size=1600,1000"]
    done = subprocess.run(
        [*command, "--dump-dom", around.as_uri()], capture_output=True, text=True, timeout=180, check=False
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the check did not finish; status {done.returncode}, log: {done.stderr[-2000:]}"
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result, done.stderr
