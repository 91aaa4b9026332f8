"""A folder of files that can be gone on with: complete files only, one kind of content, checksums of all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simo_merge.errors import SimoError

SETTINGS, SUMS = "prepared.json", "SHA256SUMS"
_PARTIAL = ".part"


def write(path: Path, content: bytes) -> str:
    """Write a file under another name first, so that what has its name is complete; returns its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    partial.write_bytes(content)
    partial.replace(path)
    return checksum(content)


def checksum(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def claim(out: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Take a folder for files of these settings; returns the checksums of an earlier run with the same ones.

    What an interrupted run left half written is removed.

    Raises:
        SimoError: the folder holds something else.
    """
    path = out / SETTINGS
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise SimoError(f"{out} is there already and was not written by this program; take a new folder")
        write(path, (json.dumps(settings, indent=2) + "\n").encode())
        return {}
    try:
        before = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise SimoError(f"{path} cannot be read as JSON: {error}; take a new folder") from None
    for name, value in settings.items():
        if before.get(name) != value:
            raise SimoError(f"{out} was written with {name} {before.get(name)!r}, not {value!r}; take another folder")
    for partial in out.rglob(f".*{_PARTIAL}"):
        partial.unlink()
    lines = (out / SUMS).read_text("utf-8").splitlines() if (out / SUMS).is_file() else []
    return {name: value for value, _, name in (line.partition("  ") for line in lines)}


def close(out: Path, sums: Mapping[str, str]) -> None:
    """Check that every file is there, and write the checksums as `sha256sum -c` reads them.

    Raises:
        SimoError: a file is missing.
    """
    gone = [name for name in sums if not (out / name).is_file()]
    if gone:
        raise SimoError(f"{out / gone[0]} is missing, {len(gone)} files in all; give the same command again")
    write(out / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode())
