"""Turn the published Cityscapes into a small, fast copy that loses nothing but resolution.

Run it as a script::

    python datasets/cityscapes/prepare.py /data/cityscapes --out /data/cityscapes-256
    python datasets/cityscapes/prepare.py /data/cityscapes --out /data/cityscapes-mtan --form mtan --size 128x256

What the files hold is in ``cityscapes_forms.py`` beside this script.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from cityscapes_forms import TASKS, Job, description, names, number_keys, produce, source, write  # noqa: E402

from simo_merge.data import FolderDataset, SourceDataset, parse_size  # noqa: E402
from simo_merge.data.cityscapes import cityscapes  # noqa: E402
from simo_merge.data.cityscapes.units import PIXELS, parse_unit  # noqa: E402
from simo_merge.errors import SimoError  # noqa: E402
from simo_merge.progress import progress  # noqa: E402

SUMS, SETTINGS = "SHA256SUMS", "prepare.json"
SPLITS = ("train", "val")

EPILOG = """\
the form `folder` (read it as folder:DIR)
  images/KEY.png        colour, averaged; every other file takes the nearest pixel
  segmentation/KEY.png  class indices, 255 where void; a palette picture
  parts/KEY.png         indices of parts
  disparity/KEY.png     the published 16-bit numbers: 0 none, else (p - 1) / 256 pixels of a picture 2048 wide
  depth/KEY.npy         metres, 0 none (only with --tasks)
  gt_sets/SPLIT.txt, dataset.yaml

the form `mtan` (read it as cityscapes:DIR)
  SPLIT/image/N.npy, label_19/N.npy and label_7/N.npy (-1 where void), depth/N.npy (p / 65535), part_seg/N.npy
  keys.csv              which picture each number is: the pictures are numbered in the order of their names, which is
                        not the (unpublished) order of MTAN's own archive

Files are named by the key of their picture, and never paired by their place in a listing. A file appears under its
name when it is complete; SHA256SUMS lists each. After an interruption, give the same command again: what is there and
agrees with SHA256SUMS is kept, what does not is written again.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prepare.py",
        description="Turn the published Cityscapes into a small, fast copy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("root", type=Path, help="folder with leftImg8bit/, gtFine/, disparity/, ... as the archives unpack")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write to: new, empty, or of an earlier run")
    add("--form", choices=tuple(TASKS), default="folder", help="what to write (default folder)")
    add("--size", default="256x512", metavar="HxW", help="height x width (default 256x512)")
    add("--splits", default=",".join(SPLITS), metavar="LIST", help="splits (default train,val)")
    add("--tasks", metavar="LIST", help="tasks (default: those whose files are there, but depth)")
    add("--classes", type=int, choices=(19, 7), default=19, help="classes in segmentation/ (default 19)")
    add("--disparity", default=PIXELS.name, metavar="UNIT", help="unit that dataset.yaml states (default px@2048)")
    add("--workers", type=int, default=2, metavar="N", help="processes (default 2)")
    return made


def listed(text: str, known: Sequence[str], flag: str) -> tuple[str, ...]:
    """`val,train` in its parts, in the order of those known.

    Raises:
        SimoError: one of them is not known, or there is none.
    """
    parts = {part.strip() for part in text.split(",") if part.strip()}
    if not parts or not parts <= set(known):
        raise SimoError(f"{flag} is {text!r}; expected some of {','.join(known)}")
    return tuple(part for part in known if part in parts)


def job_of(options: argparse.Namespace, splits: Sequence[str]) -> Job:
    """What the options ask for.

    Raises:
        SimoError: an option that does not fit, or no published Cityscapes in the folder.
    """
    if options.workers < 1:
        raise SimoError(f"--workers is {options.workers}; expected 1 or more")
    if options.form == "mtan" and (options.classes != 19 or options.disparity != PIXELS.name):
        raise SimoError("--classes and --disparity are for the form folder; mtan always has both labels and p / 65535")
    size, unit = parse_size(options.size), parse_unit(options.disparity).name
    job = Job(options.root, options.out, options.form, size, options.classes, unit)
    known = TASKS[options.form]
    if options.tasks is not None:
        return replace(job, tasks=listed(options.tasks, known, "--tasks"))
    offered = source(job, splits[0]).source.tasks
    return replace(job, tasks=tuple(task for task in known if task in offered and task != "depth"))


def read_sums(path: Path) -> dict[str, str]:
    """Name -> SHA-256; of two lines for a name the later one counts, a line that was cut off does not."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return {line[66:-1]: line[:64] for line in lines if line[64:66] == "  " and line.endswith("\n")}


def claim(job: Job) -> None:
    """Make the folder ours, and clear away what an interruption left half written.

    Raises:
        SimoError: it holds something else, or files that were made with other settings.
    """
    path = job.out / SETTINGS
    if not path.is_file():
        if job.out.exists() and (not job.out.is_dir() or any(job.out.iterdir())):
            raise SimoError(f"{job.out} is not empty and has no {SETTINGS} of an earlier run; name a new folder")
        write(path, json.dumps(job.settings()).encode())
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise SimoError(f"{path} cannot be read as JSON; name another folder with --out") from None
    changed = [name for name, value in job.settings().items() if before.get(name) != value]
    if changed:
        told = ", ".join(f"{name} {before.get(name)} (now {job.settings()[name]})" for name in changed)
        raise SimoError(f"{job.out} was prepared with {told}; give those again, or name another folder with --out")
    for part in job.out.rglob(".*.part"):
        part.unlink()


def run(job: Job, splits: Sequence[str], workers: int) -> str:
    """Prepare the splits; returns the summary.

    Raises:
        SimoError: something is missing or wrong in the source, or in what was written.
    """
    datasets = {split: source(job, split) for split in splits}
    claim(job)
    if job.form == "mtan":
        number_keys(job, datasets)
    known = read_sums(job.out / SUMS)
    kept = differed = 0
    calls = []
    for split, dataset in datasets.items():
        for number, key in enumerate(dataset.keys):
            mine = {name: known[name] for name in names(job, split, number, key) if name in known}
            calls.append((job, split, number, mine))
    with (job.out / SUMS).open("a", encoding="utf-8") as journal:
        for sums, there, differ in progress(results(calls, workers), len(calls), "preparing"):
            kept, differed = kept + there, differed + differ
            journal.writelines(f"{found}  {name}\n" for name, found in sums.items() if known.get(name) != found)
            journal.flush()
            known |= sums
    write(job.out / SUMS, "".join(f"{known[name]}  {name}\n" for name in sorted(known)).encode())
    if job.form == "folder":
        for split, dataset in datasets.items():
            write(job.out / "gt_sets" / f"{split}.txt", "".join(f"{key}\n" for key in dataset.keys).encode())
        write(job.out / "dataset.yaml", description(job, next(iter(datasets.values())).tasks))
    verify(job, datasets, known)
    lines = [f"{job.out}: {len(known)} files, all in {SUMS}; {kept} were there and agree with it"]
    lines += [f"{differed} differed from {SUMS} and were written again"] if differed else []
    lines += [f"{split}: {len(d)} of the {d.published} images that were published" for split, d in datasets.items()]
    return "\n".join(lines)


Call = tuple[Job, str, int, dict[str, str]]


def results(calls: list[Call], workers: int) -> Iterator[tuple[dict[str, str], int, int]]:
    """What `produce` returns for each call, in their order."""
    if workers == 1:
        yield from (produce(*call) for call in calls)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            yield from pool.map(produce, *zip(*calls, strict=True))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def verify(job: Job, datasets: dict[str, SourceDataset], known: dict[str, str]) -> None:
    """Count what is there, and open it as a user will.

    Raises:
        SimoError: files are missing, or there are some that no list has.
    """
    there = {path.relative_to(job.out).as_posix() for path in job.out.rglob("*") if path.suffix in (".png", ".npy")}
    if there != set(known):
        odd = min(there ^ set(known))
        where = f"is there and not in {SUMS}" if odd in there else f"is in {SUMS} and not there"
        raise SimoError(f"{job.out}: {len(there)} files, and {len(known)} in {SUMS}; {odd} {where}")
    for split, dataset in datasets.items():
        folder = job.form == "folder"
        found = FolderDataset(job.out, split) if folder else cityscapes(job.out, split, job.tasks, layout="mtan")
        if len(found) != len(dataset):
            raise SimoError(f"{job.out}: {len(found)} images of {split} can be read, expected {len(dataset)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        splits = listed(options.splits, SPLITS, "--splits")
        summary = run(job_of(options, splits), splits, options.workers)
    except (SimoError, OSError, BrokenProcessPool) as error:
        sys.stderr.write(f"prepare.py: error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("prepare.py: interrupted; what is written is kept, the same command goes on with the rest\n")
        return 130
    sys.stdout.write(summary + os.linesep)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
