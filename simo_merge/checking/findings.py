"""What a check found: sentences with a level, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from simo_merge.checking.statistics import Statistics

Level = Literal["failure", "warning", "note"]
LEVELS: tuple[Level, ...] = ("failure", "warning", "note")
SHOWN = 20
"""So many files or keys are listed in text; JSON has all that were kept."""


@dataclass(frozen=True)
class Finding:
    """One thing that was seen.

    Attributes:
        level: `failure` makes the data set unsound, `warning` may, `note` is for information.
        code: What it is, for machines: `eight-bit`, `flipped`.
        message: What was seen and what to do, in a sentence or two.
        task: The task that it is about; empty where it is about the whole set.
        keys: The images that it is about, where it is about some of them.
        details: A line for each of them, where there is more to say than the key.
    """

    level: Level
    code: str
    message: str
    task: str = ""
    keys: tuple[str, ...] = ()
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Findings:
    """The outcome of a check.

    Attributes:
        statistics: What was counted.
        findings: What was found, failures first.
    """

    statistics: Statistics
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether there is no failure."""
        return not self.of("failure")

    def of(self, level: Level) -> tuple[Finding, ...]:
        """The findings of one level."""
        return tuple(finding for finding in self.findings if finding.level == level)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: `sound`, `findings`, and what was counted."""
        plain = [{**asdict(finding), "keys": list(finding.keys)} for finding in self.findings]
        for entry in plain:
            entry["details"] = list(entry["details"])
        return {"sound": self.sound, "findings": plain, **self.statistics.to_json()}


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Failures first, then warnings, then notes; otherwise in the order in which they were found."""
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))


def named(keys: Sequence[str], many: int = 3) -> str:
    """A few of the keys for a sentence: `a, b, c and 9 more`."""
    shown = ", ".join(keys[:many])
    return shown if len(keys) <= many else f"{shown} and {len(keys) - many} more"


def percent(share: float) -> str:
    """A share as percent with a sensible number of digits: `100 %`, `34.1 %`, `0.02 %`."""
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"
