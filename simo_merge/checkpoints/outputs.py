"""What a directory that `--overwrite` would replace may hold: the files that this package writes, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from simo_merge.checkpoints.config import FORMAT

CONFIG = "config.json"
# By the folder inside an output, of which "*" stands for any name: what is written there.
_WRITTEN: dict[str, re.Pattern[str]] = {
    ".": re.compile(
        r"README\.md|config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"  # weights
        r"|contact-sheet\.png|histograms\.png|findings\.json"  # check-data
        r"|results\.json|report\.html"  # demo
    ),
    "tasks/*": re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"),
    "model": re.compile(r"README\.md|config\.json|model\.safetensors"),
    "photos": re.compile(r".+\.png"),
}
# What `affinity` writes; such names are everybody's, so they are ours only beside the values that it writes.
AFFINITY = "affinity.json"
_AFFINITY: dict[str, re.Pattern[str]] = {
    ".": re.compile(r"affinity\.json|index\.html"),
    "pictures": re.compile(r"[a-z0-9-]+\.(png|svg)"),
    "tables": re.compile(r"[a-z0-9-]+\.csv"),
    "grouping": re.compile(r"README\.md|encoder-\d+\.yaml"),
}
_SYSTEM = {".DS_Store", "Thumbs.db", "desktop.ini"}  # file managers leave these; nobody misses them


def foreign_files(directory: Path) -> list[Path]:
    """Files below a directory, relative to it, that no command of this package writes there; few are enough to know.

    A `config.json` must be that of a checkpoint of ours, and a prediction's picture `x.TASK.png` lies beside `x.npz`;
    an affinity report has its values.
    """
    return sorted(path.relative_to(directory) for path in _files(directory) if not _is_ours(path, directory))


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())


def _is_ours(path: Path, directory: Path) -> bool:
    folder = path.parent.relative_to(directory)
    pattern = _WRITTEN.get("tasks/*" if folder.parent == Path("tasks") else folder.as_posix())
    if path.name in _SYSTEM:
        return True
    if pattern is not None and pattern.fullmatch(path.name):
        return path.name != CONFIG or _is_checkpoint(path)
    pattern = _AFFINITY.get(folder.as_posix())
    if pattern is not None and pattern.fullmatch(path.name):
        return _is_affinity(directory / AFFINITY)
    return path.parent == directory and _is_prediction(path)


def _is_checkpoint(config: Path) -> bool:
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _is_affinity(values: Path) -> bool:
    try:
        content = json.loads(values.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"measures", "groupings"} <= set(content)


def _is_prediction(path: Path) -> bool:
    """`x.npz` with pictures `x.TASK.png` beside it, or one of these."""
    if path.suffix == ".npz":
        start = f"{path.stem}."
        return any(p.suffix == ".png" and p.name.startswith(start) for p in path.parent.iterdir())
    return path.suffix == ".png" and path.with_suffix("").with_suffix(".npz").is_file()
