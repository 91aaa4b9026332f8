"""Output directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simo_merge.checkpoints.outputs import foreign_files
from simo_merge.errors import SimoError


def prepare_output(directory: str | Path, overwrite: bool = False) -> Path:
    """Check, before any work starts, that a result can be written to `directory`.

    Raises:
        SimoError: it is a file, or lies where this user cannot write, or it exists, is not empty, and `overwrite`
            is not set or would take the current folder, the home folder or files of another origin with it.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise SimoError(f"{path} is a file; the output must be a directory")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise SimoError(f"the output directory {path} exists and is not empty; choose another or pass --overwrite")
        if any(folder.resolve().is_relative_to(path.resolve()) for folder in (Path.cwd(), Path.home())):
            raise SimoError(f"--overwrite would delete {path}, which holds the current folder or your home")
        foreign = foreign_files(path)
        if foreign:
            raise SimoError(
                f"--overwrite would delete files in {path} that simo_merge did not write: {_told(foreign)}; move them, "
                "or choose another output"
            )
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise SimoError(f"{path} cannot be written: {parent} is no folder that you may write to")
    return path


def _told(files: list[Path], shown: int = 3) -> str:
    more = f" and {len(files) - shown} more" if len(files) > shown else ""
    return ", ".join(map(str, files[:shown])) + more


@contextmanager
def written_directory(directory: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory beside `directory` that takes its name when the block ends well.

    A block that fails leaves neither the temporary directory nor a changed `directory`.
    """
    path = prepare_output(directory, overwrite).resolve()  # "." and ".." have no name to put a temporary one beside
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:8]  # not the process id: in containers a killed run's number comes again
    temporary = path.with_name(f".{path.name}.{unique}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        _take_name(temporary, path, path.with_name(f".{path.name}.{unique}.old"))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _take_name(new: Path, path: Path, aside: Path) -> None:
    """Rename `new` to `path`; what was there goes aside first and comes back if that fails."""
    if not path.exists():
        new.rename(path)
        return
    path.rename(aside)
    try:
        new.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)
