"""The check of a data set: count, then judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simo_merge.checking.findings import Findings, ordered
from simo_merge.checking.rules import RULES
from simo_merge.checking.statistics import Statistics, collect
from simo_merge.data import DenseDataset


def check_dataset(
    dataset: DenseDataset, limit: int | None = None, missing: Mapping[str, Sequence[str]] | None = None
) -> Findings:
    """Read a data set once and say whether pixels, masks, units and splits are right, or what is wrong.

    Damaged files are named and passed over. The same data gives the same findings.

    Args:
        dataset: What to check.
        limit: At most so many images, evenly spaced; None reads all.
        missing: Task -> label files that are not there, of tasks that the data set was opened without.

    Raises:
        SimoError: an empty data set, or a limit below 1.
    """
    statistics = collect(dataset, limit)
    statistics.missing = {task: tuple(files) for task, files in (missing or {}).items()}
    return judge(statistics)


def judge(statistics: Statistics) -> Findings:
    """What every rule says of what was counted."""
    return Findings(statistics, ordered(finding for rule in RULES for finding in rule(statistics)))
