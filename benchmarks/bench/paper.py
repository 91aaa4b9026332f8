"""The paper's tables as markdown: ours, mean ± standard deviation over seeds, with the published number beside each."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence

from bench.published import PublishedTable, PublishedTask, published_table, read_published
from bench.tables import markdown, mean_spread
from simo_merge.metrics import gain_ratio
from simo_merge.report.numbers import short_count
from simo_merge.results import ResultRow

RETRAINED = "decoders re-trained with labels"
"""What the re-alignment `head` does, in a table for readers who do not know its name."""


def score_table(rows: Sequence[ResultRow], table: str | None) -> str:
    """Scores and delta of every method, then what it was given and what it cost.

    Args:
        rows: of one set of tasks.
        table: of the paper, whose numbers stand in columns of their own; None for data that it does not have.
    """
    paper = published_table(table)
    groups = by_method(rows)
    if not groups:
        return ""
    first = next(iter(groups.values()))[0]
    columns = [Column(task, next(iter(first.per_task[task])), paper) for task in first.tasks]
    head = ["method", *(cell for column in columns for cell in column.head), "Δ, % ↑"]
    head += [*(["paper"] if paper else []), "images", "labels", "passes", "fit, s", "seeds"]
    lines = [_line(name, found, columns, paper) for name, found in groups.items()]
    return markdown(head, lines + _paper_only(groups, columns, paper, len(head)))


def cost_table(rows: Sequence[ResultRow], table: str | None) -> str:
    """Steps, parameters that are trained, and images: the paper's table of costs, of this data set.

    The paper's steps may be of one task or of all; it does not say.
    """
    costs = read_published().costs
    published = {row.method: row for row in costs.rows} if table == costs.data else {}
    lines = []
    for name, found in by_method(rows).items():
        row, paper = found[0], published.get(name)
        ours = [str(row.steps), short_count(row.trainable_parameters), str(max(row.images, row.labels))]
        theirs = ["", "", ""]
        if paper is not None:
            theirs = [str(paper.steps), short_count(paper.trainable_parameters), str(paper.images)]
        cells = [cell for pair in zip(ours, theirs, strict=True) for cell in pair] if published else ours
        lines.append([name, *cells, str(row.labels), _seconds(found)])
    columns = ["steps", "trained parameters", "images"]
    head = [cell for column in columns for cell in ((column, "paper") if published else (column,))]
    return markdown(["method", *head, "labels", "fit, s"], lines) if lines else ""


def verdict_table(rows: Sequence[ResultRow], methods: Mapping[str, str]) -> str:
    """Delta of each task beside the mean, for the methods of a choice and every joint training of full length.

    Args:
        rows: of one set of tasks.
        methods: name of a row -> what it is called in the table.
    """
    experts = {row.seed: row for row in rows if row.method == "experts"}
    groups = by_method(rows)
    joint = {name: name for name in groups if name.startswith("joint-") and not name.endswith("-steps")}
    joint = {name: re.sub(r"\+head$", f", {RETRAINED}", name) for name in joint}
    lines = []
    for name, told in {**methods, **joint}.items():
        found = groups.get(name, [])
        if not found:
            continue
        tasks = [mean_spread(_task_delta(row, experts[row.seed], task) for row in found) for task in found[0].tasks]
        cells = ["0"] * (1 + len(tasks)) if name == "experts" else [mean_spread(r.delta_ratio for r in found), *tasks]
        first, seeds = found[0], str(len({row.seed for row in found}))
        lines.append([told, *cells, str(first.labels), f"{first.encoder_passes:.3g}", seeds])
    tasks = [f"{task}, %" for task in rows[0].tasks] if rows else []
    return markdown(["", "Δ, % ↑", *tasks, "labels", "encoder passes", "seeds"], lines) if lines else ""


def _task_delta(row: ResultRow, expert: ResultRow, task: str) -> float:
    """Of the primary metric, which is a task's first."""
    metric, baseline = next(iter(expert.per_task[task].items()))
    return gain_ratio(row.per_task[task][metric], baseline, metric == "miou")


class Column:
    """One task's column, and the paper's beside it."""

    def __init__(self, task: str, metric: str, paper: PublishedTable | None) -> None:
        self.task, self.metric = task, metric
        found = [(i, t) for i, t in enumerate(paper.tasks) if t.name == task] if paper else []
        self.index = found[0][0] if found else None
        self.published: PublishedTask | None = found[0][1] if found else None
        self.beside = paper is not None

    @property
    def head(self) -> list[str]:
        arrow = "↑" if self.metric == "miou" else "↓"
        theirs = "" if self.published is None or self.published.metric == self.metric else f" ({self.published.metric})"
        return [f"{self.task} {self.metric} {arrow}", *([f"paper{theirs}"] if self.beside else [])]

    def ours(self, rows: Sequence[ResultRow]) -> str:
        percent = self.metric == "miou"
        digits = 1 if percent else 3
        if self.published is not None and self.published.metric == self.metric:
            digits = self.published.digits
        values = [row.per_task[self.task][self.metric] * (100 if percent else 1) for row in rows]
        return mean_spread(values, digits, sign=False)

    def theirs(self, cells: Sequence[float] | None) -> list[str]:
        if not self.beside:
            return []
        if cells is None or self.index is None or self.published is None:
            return [""]
        return [f"{cells[self.index]:.{self.published.digits}f}"]


def by_method(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    """Rows of each method over seeds, in the order in which they were measured first."""
    found: dict[str, list[ResultRow]] = {}
    for row in rows:
        found.setdefault(row.method, []).append(row)
    order = {"experts": 0, "base": 1}
    merges = list(dict.fromkeys(name.partition("+")[0] for name in found))  # a merge, then its re-alignments
    ranked = sorted(found, key=lambda name: (order.get(name, 2), merges.index(name.partition("+")[0])))
    return {name: found[name] for name in ranked}


def _line(name: str, rows: Sequence[ResultRow], columns: Sequence[Column], paper: PublishedTable | None) -> list[str]:
    published = paper.row(name) if paper else None
    cells = [name]
    for column in columns:
        cells += [column.ours(rows), *column.theirs(published.cells if published else None)]
    cells.append("0" if name == "experts" else mean_spread(row.delta_ratio for row in rows))
    if paper:
        cells.append(mean_spread([] if published is None or published.delta is None else [published.delta]))
    row = rows[0]
    seeds = len({row.seed for row in rows})
    return [*cells, str(row.images), str(row.labels), f"{row.encoder_passes:.3g}", _seconds(rows), str(seeds)]


def _paper_only(
    groups: dict[str, list[ResultRow]], columns: Sequence[Column], paper: PublishedTable | None, width: int
) -> list[list[str]]:
    """Rows that the paper has and we have not."""
    lines = []
    for row in paper.rows if paper else ():
        if row.method not in groups:
            cells = [f"{row.paper} (paper alone)"]
            for column in columns:
                cells += ["", *column.theirs(row.cells)]
            cells += ["", mean_spread([] if row.delta is None else [row.delta])]
            lines.append(cells + [""] * (width - len(cells)))
    return lines


def _seconds(rows: Sequence[ResultRow]) -> str:
    """Of the fit, or of the merge where nothing is fitted after it; capture of features apart."""
    values = [row.fit_seconds if "+" in row.method or row.fit_seconds else row.merge_seconds for row in rows]
    return f"{statistics.median(values):.1f}" if all(value == value for value in values) else ""
