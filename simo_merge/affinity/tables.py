"""Affinities that somebody else measured, read from a table."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from simo_merge.affinity.matrix import AffinityMatrix, Needs
from simo_merge.errors import SimoError, nearest


def read_table(
    path: str | Path, tasks: Sequence[str] | None = None, name: str | None = None, needs: Needs = "labels"
) -> AffinityMatrix:
    """A CSV table with a row and a column for every task, as published affinities come, as a matrix.

    The first line names the targets after a first cell that is not read; every other line holds a source and its T
    values, larger for tasks that go together better. An empty cell, or `nan`, is a pair without a value.

        source,depth,normals
        depth,1.0,0.4
        normals,0.7,1.0

    Args:
        path: the file.
        tasks: which of its tasks, in this order; default: all, as its columns have them.
        name: of the measure; default: the file's, without its ending.
        needs: the most that whoever measured it was given.

    Raises:
        SimoError: a file that cannot be read, is no such table, or lacks a task.
    """
    path = Path(path)
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SimoError(f"{path} cannot be read as a CSV table of affinities: {error}") from error
    rows = [[cell.strip() for cell in line] for line in lines if any(cell.strip() for cell in line)]
    columns = rows[0][1:] if rows else []
    sources = [row[0] for row in rows[1:]]
    if len(set(columns)) < len(columns) or sorted(columns) != sorted(sources) or len(columns) < 2:
        raise SimoError(
            f"{path} has the columns {', '.join(columns) or '(none)'} and the rows {', '.join(sources) or '(none)'}; "
            "expected the same two tasks or more in both, each once, after a first line that names the columns"
        )
    wanted = list(tasks or columns)
    missing = [task for task in wanted if task not in columns]
    if missing:
        raise SimoError(
            f"{path} has no task {', '.join(missing)}; it has {', '.join(columns)}{nearest(missing, columns)}. "
            "Name its rows and columns as the experts' tasks are named"
        )
    by_source = dict(zip(sources, rows[1:], strict=True))
    read = torch.tensor([_numbers(path, by_source[source], columns) for source in columns], dtype=torch.float64)
    chosen = [columns.index(task) for task in wanted]
    values = read[chosen][:, chosen]
    return AffinityMatrix(name or path.stem, tuple(wanted), values, _is_symmetric(values), needs)


def _numbers(path: Path, row: Sequence[str], columns: Sequence[str]) -> list[float]:
    source, cells = row[0], row[1:]
    if len(cells) != len(columns):
        raise SimoError(f"{path}: the row of {source} has {len(cells)} values, expected {len(columns)}, one a column")
    found = []
    for target, cell in zip(columns, cells, strict=True):
        try:
            found.append(float(cell) if cell else math.nan)
        except ValueError:
            raise SimoError(f"{path}: {source}, {target} is {cell!r}, expected a number or nothing") from None
    return found


def _is_symmetric(values: Tensor) -> bool:
    return torch.allclose(values, values.T, rtol=0, atol=0, equal_nan=True)
