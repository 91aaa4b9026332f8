"""How many images each split of a source has, here and as published."""

from __future__ import annotations

from dataclasses import dataclass

from simo_merge.data import Source, Split
from simo_merge.errors import SimoError


@dataclass(frozen=True)
class SplitReport:
    """The splits of a source.

    Attributes:
        found: Those that could be listed.
        problems: Name of a split -> why it could not.
    """

    found: tuple[Split, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()

    def of(self, key: str) -> str:
        """Names of the splits that a key is in, for a sentence; empty where there are none."""
        return " and ".join(split.name for split in self.found if key in split.keys)


def report_splits(source: Source) -> SplitReport:
    """List every split that the source names."""
    found, problems = [], []
    for name in source.splits():
        try:
            found.append(source.split(name))
        except SimoError as error:
            problems.append((name, str(error)))
    return SplitReport(tuple(found), tuple(problems))
