"""Turn a copy of Taskonomy into the fast form: a folder at one size, as docs/own-data.md describes it.

Run it as a script::

    python datasets/taskonomy/prepare.py /data/taskonomy fast --split simo-2504.11268/train --size 256x256 --workers 8
"""

from __future__ import annotations

import argparse
import functools
import logging
import multiprocessing
import sys
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

import torch
from taskonomy_form import (
    SUMS,
    Job,
    Outcome,
    check_files,
    check_settings,
    convert,
    read_sums,
    write,
    write_description,
    write_sums,
)

from simo_merge.data import FolderDataset, detect, parse_size
from simo_merge.data.taskonomy import DOMAINS, SPLITS, TASKONOMY_LAYOUTS
from simo_merge.errors import SimoError
from simo_merge.progress import progress

LEFT_OUT = "left_out.txt"
EPILOG = """\
what is written
  images/BUILDING/VIEW.png  colour at the size asked for (--images jpg: smaller, lossy)
  TASK/BUILDING/VIEW.png    the stored numbers of the nearest pixel, in the published encoding and bit depth
  mask_valid/...            not 0 where geometric labels are valid
  gt_sets/SPLIT.txt         the views of each split; tiny/train becomes tiny-train
  dataset.yaml              says what the files hold; read it with folder:OUT
  prepare.json, SHA256SUMS  the options, and the sum of each file

To go on after an interruption, or to add splits, give the same OUT and options again: views that are there are
checked against their sums and kept.

examples
  %(prog)s /data/taskonomy fast --split tiny/train --split tiny/val --workers 8
  %(prog)s /data/taskonomy try --buildings allensville --limit 100 --tasks depth normals
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prepare.py",
        description="Turn a copy of Taskonomy into a folder at one size that loads fast.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("root", type=Path, metavar="ROOT", help="the copy, in any layout that README.md lists")
    add("out", type=Path, metavar="OUT", help="the folder to write")
    add("--split", action="append", metavar="SPLIT", help=f"one of {', '.join(SPLITS)}; may be repeated; default: all")
    add("--buildings", nargs="+", metavar="NAME", help="only these buildings of the splits")
    add("--limit", type=int, metavar="N", help="at most so many views of a building")
    add("--tasks", nargs="+", metavar="TASK", help=f"of {', '.join(DOMAINS)}; default: those that are there")
    add("--size", default="256x256", metavar="HxW", help="height and width in pixels (default 256x256)")
    add("--images", choices=("png", "jpg"), default="png", help="how colours are stored (default png, lossless)")
    add("--layout", choices=[kind.layout for kind in TASKONOMY_LAYOUTS], help="default: found out")
    add(
        "--skip-damaged",
        action="store_true",
        help=f"leave out views with a damaged file; {LEFT_OUT} lists those of this run",
    )
    add("--workers", type=int, default=2, metavar="N", help="processes (default 2)")
    return made


def plan(options: argparse.Namespace) -> Job:
    """The job that the options describe.

    Raises:
        SimoError: a number out of range, an unknown task, or no Taskonomy.
    """
    if options.workers < 1 or (options.limit is not None and options.limit < 1):
        raise SimoError(f"--workers is {options.workers} and --limit {options.limit}; both must be 1 or more")
    kind = detect("taskonomy", options.root, TASKONOMY_LAYOUTS, options.layout)
    offered = tuple(kind(options.root).tasks)
    unknown = [task for task in options.tasks or () if task not in offered]
    if unknown:
        raise SimoError(f"{options.root} has no task {', '.join(unknown)}; it has {', '.join(offered)}")
    if not offered:
        folders = ", ".join(domain.folder for domain in DOMAINS.values())
        raise SimoError(f"{options.root} has pictures and no labels; expected a folder of {folders}")
    tasks = tuple(task for task in offered if not options.tasks or task in options.tasks)
    return Job(options.root, kind.layout, options.out, tasks, parse_size(options.size), options.images)


def choose_views(job: Job, options: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Name of each list in gt_sets -> its keys."""
    wanted = set(options.buildings or ())
    unknown = sorted(wanted.difference(job.source.buildings()))
    if unknown:
        raise SimoError(f"{job.root} has no building {', '.join(unknown)}; it has {', '.join(job.source.buildings())}")
    chosen = {}
    for split in options.split or [None]:
        taken: dict[str, int] = {}
        keys = []
        for key in job.source.split(split).keys:
            building = key.partition("/")[0]
            taken[building] = taken.get(building, 0) + 1
            if (not wanted or building in wanted) and taken[building] <= (options.limit or taken[building]):
                keys.append(key)
        if not keys:
            raise SimoError(f"{job.root}: split {split} has none of the buildings {', '.join(sorted(wanted))}")
        chosen[(split or "all").replace("/", "-")] = tuple(keys)
    return chosen


def convert_all(job: Job, keys: Sequence[str], workers: int) -> Generator[Outcome, None, None]:
    """The outcome of each view, in their order."""
    work = functools.partial(convert, job)
    if workers == 1:
        yield from map(work, keys)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield from pool.map(work, keys, chunksize=8)
        finally:
            pool.shutdown(cancel_futures=True)


def run(options: argparse.Namespace) -> str:
    """Prepare what the options ask for; returns the summary.

    Raises:
        SimoError: a mistake in the options, a damaged file, or a written file that has changed since.
    """
    job = plan(options)
    chosen = choose_views(job, options)
    keys = tuple(dict.fromkeys(key for listed in chosen.values() for key in listed))
    check_settings(job)
    known = read_sums(job.out)
    sums: dict[str, str] = {}
    problems: dict[str, str] = {}
    made = 0
    try:
        with closing(convert_all(job, keys, options.workers)) as outcomes:
            for outcome in progress(outcomes, len(keys), "views"):
                _check(job, outcome, known, options.skip_damaged)
                if outcome.problem:
                    problems[outcome.key] = outcome.problem
                sums.update(outcome.sums)
                made += outcome.made
    finally:
        write_sums(job.out, {**known, **sums})
    finish(job, chosen, problems)
    kept = len(keys) - made - len(problems)
    left = f", {len(problems)} left out ({job.out / LEFT_OUT})" if problems else ""
    return f"{job.out}: {made} views written, {kept} were there already{left}; the files agree with {SUMS}"


def _check(job: Job, outcome: Outcome, known: Mapping[str, str], skip_damaged: bool) -> None:
    if outcome.problem and not skip_damaged:
        raise SimoError(f"{outcome.problem} To leave such views out, give --skip-damaged.")
    for file, value in outcome.sums.items():
        if not outcome.made and known.get(file, value) != value:
            raise SimoError(f"{job.out / file} has changed since it was written; delete it and run this again")


def finish(job: Job, chosen: Mapping[str, Sequence[str]], problems: Mapping[str, str]) -> None:
    """Write what describes the files, and see that the whole can be read."""
    (job.out / LEFT_OUT).unlink(missing_ok=True)
    if problems:
        write(job.out / LEFT_OUT, "".join(f"{key}: {why}\n" for key, why in problems.items()).encode())
    write_description(job)
    for name, keys in chosen.items():
        there = [key for key in keys if key not in problems]
        if not there:
            raise SimoError(f"{job.root}: no view of {name} can be read; see {job.out / LEFT_OUT}")
        write(job.out / "gt_sets" / f"{name}.txt", "".join(f"{key}\n" for key in there).encode())
    check_files(job)
    for name in chosen:
        FolderDataset(job.out, name)[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        summary = run(options)
    except (SimoError, OSError) as error:
        sys.stderr.write(f"prepare.py: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("prepare.py: interrupted; the same command goes on with the rest\n")
        return 2
    sys.stdout.write(summary + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
