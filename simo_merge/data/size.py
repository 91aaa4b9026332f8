"""How a size is written."""

from __future__ import annotations

import re

from simo_merge.errors import SimoError


def parse_size(text: str) -> tuple[int, int]:
    """`126x168` (height x width) as numbers.

    Raises:
        SimoError: another form.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise SimoError(f"a size is HEIGHTxWIDTH, like 126x168; got {text!r}")
    return int(match[1]), int(match[2])
