"""Output directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simo_merge.errors import SimoError


def prepare_output(directory: str | Path, overwrite: bool = False) -> Path:
    """Check, before any work starts, that a result can be written to `directory`.

    Raises:
        SimoError: it exists and is not empty (without `overwrite`), or is a file.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise SimoError(f"{path} is a file; the output must be a directory")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise SimoError(f"the output directory {path} exists and is not empty; choose another or pass --overwrite")
    return path


@contextmanager
def written_directory(directory: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory beside `directory` that takes its name when the block ends well.

    A block that fails leaves neither the temporary directory nor a changed `directory`.
    """
    path = prepare_output(directory, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
