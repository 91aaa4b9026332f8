"""One line of text that names a data set: `prefix:place?option=value&option=value`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from simo_merge.errors import SimoError


@dataclass(frozen=True)
class Spec:
    """The parts of a data set's line of text; `place` is empty where none was given."""

    prefix: str
    place: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path | None:
        """The place as a path."""
        return Path(self.place) if self.place else None


def parse_spec(text: str) -> Spec:
    """`nyuv2:/data/nyu?layout=mtan&size=126x168` in its parts. A bare path has the prefix `folder`.

    Raises:
        SimoError: an option without a value, or one that is given twice.
    """
    if Path(text).is_dir():
        return Spec("folder", text)
    before, _, query = text.partition("?")
    prefix, _, place = before.partition(":")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if not value or name in options:
            raise SimoError(f"data set {text!r}: expected each option once, as name=value; got {part!r}")
        options[name] = value
    if Path(before).is_dir():
        return Spec("folder", before, options)
    return Spec(prefix, place, options)


def parse_size(text: str) -> tuple[int, int]:
    """`126x168` (height x width) as numbers.

    Raises:
        SimoError: another form.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise SimoError(f"a size is HEIGHTxWIDTH in pixels, like 126x168; got {text!r}")
    return int(match[1]), int(match[2])
