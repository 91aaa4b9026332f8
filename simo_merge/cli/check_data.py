"""`check-data`: is a data set sound, or what is wrong with it?"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from simo_merge.checking import Finding, Findings, check_dataset
from simo_merge.checking.findings import LEVELS, SHOWN, percent
from simo_merge.checking.pictures import contact_sheet, histograms
from simo_merge.checking.statistics import (
    ClassStatistics,
    NormalsStatistics,
    Statistics,
    TaskStatistics,
    ValueStatistics,
)
from simo_merge.checkpoints import written_directory
from simo_merge.cli.options import DATA_HELP, Overwrite, check_output
from simo_merge.data import DERIVED, DenseDataset, SourceDataset, find_rooms, open_dataset, parse_spec
from simo_merge.errors import SimoError

SHEET, HISTOGRAMS, FINDINGS = "contact-sheet.png", "histograms.png", "findings.json"


def check_data(
    data: Annotated[str, typer.Argument(metavar="SPEC", help=DATA_HELP)],
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Check this split; default: every image, and each split's count.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", metavar="NAME", help="Only this task; may be given again.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Read at most so many images, evenly spaced.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help=f"Directory for {SHEET}, {HISTOGRAMS} and {FINDINGS}."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings and counts as JSON.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Read a data set and say whether pixels, masks, units and splits are right, or what is wrong.

    The exit status is 0 when it is sound, 1 when there is a failure, and 2 when it cannot be opened.

    Example: simo-merge check-data folder:street --split train -o runs/check
    """
    if output is not None:
        check_output(output, overwrite, data)
    dataset, missing = open_to_check(data, split, tasks)
    with _without_warnings("simo_merge.data"):  # of each split that is counted; they are among the findings
        findings = check_dataset(dataset, limit, missing)
    plain = findings.to_json()
    if output is not None:
        with written_directory(output, overwrite) as folder:
            Image.fromarray(contact_sheet(dataset, findings.statistics)).save(folder / SHEET)
            Image.fromarray(histograms(findings.statistics)).save(folder / HISTOGRAMS)
            (folder / FINDINGS).write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(plain, allow_nan=False))
    else:
        for line in as_lines(findings):
            typer.echo(line)
        if output is not None:
            typer.echo(f"look at {output / SHEET} and {output / HISTOGRAMS}")
    if not findings.sound:
        raise typer.Exit(1)


def open_to_check(
    data: str, split: str | None, tasks: list[str] | None
) -> tuple[DenseDataset, dict[str, tuple[str, ...]]]:
    """A data set, and the label files that are not there: tasks that lack some are left out and not an error here.

    Raises:
        SimoError: as `open_dataset`, for everything else.
    """
    parsed = parse_spec(data)
    if split is None and parsed.prefix == "rooms":  # they ask for a split, and here that would hide the others
        options = "&".join(f"{name}={value}" for name, value in parsed.options.items())
        data = f"folder:{find_rooms(parsed.place or None)}" + (f"?{options}" if options else "")
    with _without_warnings("simo_merge.data.source"):  # that the copy is partial is one of the findings
        try:
            return open_dataset(data, split, tasks), {}
        except SimoError:
            bare = _opened_bare(data, split)
            if bare is None:
                raise
            names = tasks if tasks is not None else list(bare.source.tasks)
            missing = {name: tuple(bare.source.missing(name, bare.keys)) for name in names if name in bare.source.tasks}
            missing = {name: files for name, files in missing.items() if files}
            kept = [name for name in names if name not in missing and _reads(name) not in missing]
            if len(kept) == len(names):
                raise
            return open_dataset(data, split, kept), missing


def _opened_bare(data: str, split: str | None) -> SourceDataset | None:
    """The data set without tasks; None where even that is an error."""
    try:
        dataset = open_dataset(data, split, [])
    except SimoError:
        return None
    return dataset if isinstance(dataset, SourceDataset) else None


def _reads(name: str) -> str:
    return DERIVED[name].source if name in DERIVED else name


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def as_lines(findings: Findings) -> list[str]:
    """What a person wants to read: what there is, what was found, and the outcome."""
    statistics = findings.statistics
    lines = [_head(statistics)]
    if statistics.splits.found:
        counts = [f"{split.name} {len(split.keys):,}{_of(split.published)}" for split in statistics.splits.found]
        lines.append(f"splits: {', '.join(counts)}")
    width = max((len(name) for name in statistics.labels), default=0)
    lines += [f"  {name:<{width}}  {_labels(counted)}" for name, counted in statistics.labels.items()]
    for finding in findings.findings:
        lines += _finding(finding)
    counts = [_count(len(findings.of(level)), level) for level in LEVELS[:2]]
    return [*lines, f"{'sound' if findings.sound else 'NOT SOUND'}: {', '.join(counts)}"]


def _head(statistics: Statistics) -> str:
    sizes = [f"{height}x{width}" for height, width in statistics.images.sizes]
    shape = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes"
    layout = f", layout {statistics.layout}" if statistics.layout else ""
    read = statistics.images.count
    some = "" if read == statistics.total else f", {read:,} of them read"
    return (
        f"{statistics.data} ({statistics.split}){layout}: {statistics.total:,}{_of(statistics.published)} images{some}"
        + (f", {shape}" if sizes else "")
    )


def _of(published: int | None) -> str:
    return "" if published is None else f" of {published:,}"


def _labels(counted: TaskStatistics) -> str:
    text = f"{percent(counted.valid_share)} labelled"
    if not counted.valid:
        return text
    if isinstance(counted, ClassStatistics):
        largest = sorted(zip(counted.shares, counted.task.classes, strict=True), reverse=True)[:4]
        there = len(counted.task.classes) - len(counted.absent)
        shares = ", ".join(f"{name} {percent(float(share))}" for share, name in largest if share)
        return f"{text}, {there} of {len(counted.task.classes)} classes: {shares}"
    if isinstance(counted, NormalsStatistics):
        return f"{text}, {percent(counted.facing_share)} point towards the viewer"
    assert isinstance(counted, ValueStatistics)
    unit = f" {counted.task.unit}" if counted.task.unit else ""
    return f"{text}, {counted.lowest:.4g} to {counted.highest:.4g}{unit}, median {counted.median:.3g}{unit}"


def _finding(finding: Finding) -> list[str]:
    about = f" ({finding.task})" if finding.task else ""
    lines = [f"{finding.level}{about}: {finding.message}"]
    if len(finding.details) > 1:
        lines += [f"    {detail}" for detail in finding.details[:SHOWN]]
        if len(finding.details) > SHOWN:
            lines.append(f"    and {len(finding.details) - SHOWN} more; --json lists them")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
