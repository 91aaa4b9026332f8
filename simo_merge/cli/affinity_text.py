"""What `affinity` says on the screen."""

from __future__ import annotations

from collections.abc import Mapping

from simo_merge.affinity import AffinityMatrix, Grouping
from simo_merge.report.affinity.contents import joined
from simo_merge.report.affinity.shades import digits


def measures_table(found: Mapping[str, AffinityMatrix], groupings: Mapping[str, Grouping]) -> list[list[str]]:
    """A line for each measure: the pairs that go together most and least, and what it would choose."""
    lines = [["measure", "needs", "closest pair", "", "farthest pair", "", "grouping"]]
    for name, matrix in found.items():
        mutual, tasks = matrix.mutual(), matrix.tasks
        pairs = [(float(mutual[i, j]), f"{tasks[i]}, {tasks[j]}") for i in range(len(tasks)) for j in range(i)]
        finite = sorted((value, pair) for value, pair in pairs if value == value)
        cells = ["", "-", "", "-"]
        if finite:
            spread = finite[-1][0] - finite[0][0]
            (low, worst), (high, best) = finite[0], finite[-1]
            cells = [best, digits(high, spread), worst, digits(low, spread)]
        lines.append([name, matrix.needs, *cells, joined(groupings[name].groups) if name in groupings else "-"])
    return lines


def decision(chosen: Grouping) -> str:
    """The grouping, what each task is expected to gain, and the next best."""
    spread = max(abs(gain) for gain in chosen.per_task.values())
    gains = ", ".join(f"{task} {digits(gain, spread)}" for task, gain in chosen.per_task.items())
    text = f"{len(chosen.groups)} of {chosen.encoders} encoders, by {chosen.measure}: {joined(chosen.groups)}\n"
    text += f"expected gains in its unit (0: alone): {gains}"
    if chosen.runner_up is not None:
        text += f"\nnext best, by {digits(chosen.margin, chosen.margin)} less: {joined(chosen.runner_up)}"
    return text
