"""Write NYUv2 in a form that is quick to read, from the official distribution or another form of it.

Run it as a script::

    python datasets/nyuv2/prepare.py nyu_depth_v2_labeled.mat --out nyuv2 --size 288x384
    simo-merge train --data folder:nyuv2 ...

``README.md`` beside this script tells where the set comes from and what the files hold.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # also where this file is not run as a script
    sys.path.insert(0, str(HERE))

import checked_folder  # noqa: E402
import plane_normals  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from nyuv2_forms import Job, Settings, description  # noqa: E402

from simo_merge.data import parse_size  # noqa: E402
from simo_merge.data.layouts import detect  # noqa: E402
from simo_merge.data.nyuv2 import NYUV2_LAYOUTS, NyuLayout  # noqa: E402
from simo_merge.data.nyuv2.mtan import PREPARED  # noqa: E402
from simo_merge.data.nyuv2.official import Official  # noqa: E402
from simo_merge.errors import SimoError  # noqa: E402
from simo_merge.progress import progress  # noqa: E402

WHOLE_FRAMES = ("official", "extracted", "multimae")
"""Layouts whose images are the camera's, neither cropped nor scaled, so that directions of pixels are known."""

EPILOG = """\
what is written
  --form folder (default), to be read as folder:DIR
    images/KEY.png        8-bit colour, lossless
    segmentation/KEY.png  class ids from 1, 0 = unlabelled
    depth/KEY.npy         float32 metres, 0 = none
    normals/KEY.npy       float16, x right, y down, z towards the viewer, zero = none
    gt_sets/SPLIT.txt, dataset.yaml
  --form mtan, to be read as nyuv2:DIR and by the many programs that read MTAN's files
    {train,val}/{image,label,depth,normal}/NUMBER.npy, float32; val are the 654 test images
    frames.csv            which number is which official frame, where the numbers are not MTAN's own
  both: prepared.json (what was asked for), SHA256SUMS (sha256sum -c SHA256SUMS checks all files)

Normals are Eigen's where his archive lies beside the .mat file (normals_gt/normals, normals_gt/masks) or is named with
--normals. Without it they are computed from depth, by a plane fit that README.md describes.

A file appears under its name when it is complete. After an interruption, or to check all files, give the same command
again: what is there and agrees with SHA256SUMS is kept, what does not is written again.

examples
  %(prog)s nyu_depth_v2_labeled.mat --out nyuv2 --size 288x384
  %(prog)s nyu_depth_v2_labeled.mat --out nyuv2-mtan --form mtan --normals normals_gt
  %(prog)s downloads/tanganke-nyuv2 --out nyuv2          (the Hub's parquet files)
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prepare.py",
        description="Write NYUv2 in a form that is quick to read, from the official distribution or another form.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("source", type=Path, metavar="SOURCE", help="nyu_depth_v2_labeled.mat, or a folder in one of the known layouts")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write to: new, empty, or of an earlier run")
    add("--form", choices=("folder", "mtan"), default="folder", help="what to write (default folder)")
    names = ", ".join(layout.layout for layout in NYUV2_LAYOUTS)
    add("--layout", metavar="NAME", help=f"layout of SOURCE, if it could be several: {names}")
    add("--normals", type=Path, metavar="DIR", help="Eigen's archive, unpacked: a folder with normals/ and masks/")
    add("--compute-normals", action="store_true", help="compute normals from depth, even where there are others")
    add("--classes", type=int, choices=(13, 40), help="13 or 40 (default: what SOURCE has, 13 where it has both)")
    add("--size", metavar="HxW", help="height x width (default: as they are; --form mtan: 288x384)")
    add("--crop", action="store_true", help="whole frames only: cut off the border that the sensor did not see")
    workers = max(1, min(4, os.cpu_count() or 1))
    add("--workers", type=int, default=workers, metavar="N", help=f"processes (default {workers})")
    return made


def make_source(options: argparse.Namespace) -> NyuLayout:
    """The source that the options name.

    Raises:
        SimoError: there is none, or it cannot have what they ask for.
    """
    found = detect("nyuv2", options.source, NYUV2_LAYOUTS, options.layout)
    if options.normals is None:
        return found(options.source, options.classes)
    if not issubclass(found, Official):
        raise SimoError(f"--normals is for the official file; {options.source} is in the layout {found.layout}")
    if options.compute_normals:
        raise SimoError("--normals and --compute-normals exclude each other; give one of them")
    return found(options.source, options.classes, archive=options.normals)


def settle(options: argparse.Namespace, source: NyuLayout) -> Settings:
    """What the options ask for, with everything that they leave open decided.

    Raises:
        SimoError: they ask for what this source does not allow.
    """
    compute = options.compute_normals or "normals" not in source.tasks
    whole = source.layout in WHOLE_FRAMES
    if not whole and (compute or options.crop):
        flag = "--crop" if options.crop else "--compute-normals"
        raise SimoError(
            f"{options.source} is in the layout {source.layout}, whose images were cropped in a way that is not known; "
            f"{flag} and data without normals need whole frames ({', '.join(WHOLE_FRAMES)})"
        )
    if options.form == "mtan" and source.classes != 13:
        raise SimoError(f"--form mtan has 13 classes, and {options.source} is read with {source.classes}: --classes 13")
    size = options.size or ("288x384" if options.form == "mtan" else "")
    if size:
        parse_size(size)
    given = "the archive of Eigen and Fergus" if source.layout == "official" else f"those of the layout {source.layout}"
    normals = plane_normals.METHOD if compute else given
    name = (source.file if isinstance(source, Official) else options.source).resolve().name
    return Settings(name, source.layout, options.form, source.classes, size, options.crop, normals)


@dataclass(frozen=True)
class Plan:
    """What is to be written: the name of each image by its key, and the names of each split's."""

    names: dict[str, str]
    splits: dict[str, list[str]]


def plan(source: NyuLayout, form: str) -> Plan:
    """All images of the source's splits.

    In MTAN's form they get MTAN's numbers where they have them, or else their places in the official lists.

    Raises:
        SimoError: no image of a split is there.
    """
    names: dict[str, str] = {}
    found: dict[str, tuple[str, ...]] = {}
    for split in source.splits():
        try:
            found[split] = source.split(split).keys
        except SimoError:
            continue  # a copy that has the other part only
        numbered = form == "folder" or all("/" in key for key in found[split])
        places = {} if numbered else {key: place for place, key in enumerate(source.listed(split))}
        part = "train" if split == "train" else "val"
        names |= {key: key if numbered else f"{part}/{places[key]}" for key in found[split] if key not in names}
    if not names:
        source.split("train")  # which says what is missing
    return Plan(names, {split: [names[key] for key in keys] for split, keys in found.items()})


def prepare(options: argparse.Namespace) -> str:
    """Do what the options ask for; returns the summary.

    Raises:
        SimoError: a mistake in the options, a damaged source, or a folder that holds something else.
    """
    if options.workers < 1:
        raise SimoError(f"--workers is {options.workers}; it must be 1 or more")
    source = make_source(options)
    job = Job(source, options.out, settle(options, source))
    planned = plan(source, options.form)
    job = replace(job, sums=checked_folder.claim(options.out, asdict(job.settings)))
    sums: dict[str, str] = {}
    written = 0
    for of_image, count in progress(converted(job, planned, options.workers), len(planned.names), "preparing"):
        sums |= of_image
        written += count
    for name, text in descriptions(job, planned):
        sums[name] = checked_folder.write(options.out / name, text.encode())
    settings = (options.out / checked_folder.SETTINGS).read_bytes()
    checked_folder.close(options.out, {**sums, checked_folder.SETTINGS: checked_folder.checksum(settings)})
    counts = ", ".join(f"{name} {len(keys)}" for name, keys in planned.splits.items())
    images = len(planned.names)
    return f"{options.out}: {images} images ({counts}); {written} files written, {len(sums) + 1} verified"


def converted(job: Job, planned: Plan, workers: int) -> Iterator[tuple[dict[str, str], int]]:
    """Checksums of the files of each image and how many of them were written, in order.

    Raises:
        SimoError: a worker process was ended from outside.
    """
    items = planned.names.items()
    if workers == 1:
        yield from (job.convert(key, name) for key, name in items)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (job,)) as pool:
        try:
            yield from pool.map(_convert, items, chunksize=2)
        except BrokenProcessPool:
            raise SimoError("a worker process was ended, perhaps for want of memory; give fewer --workers") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_JOB: list[Job] = []


def _start(job: Job) -> None:
    torch.set_num_threads(1)
    _JOB[:] = [job]


def _convert(item: tuple[str, str]) -> tuple[dict[str, str], int]:
    return _JOB[0].convert(*item)


def descriptions(job: Job, planned: Plan) -> Iterator[tuple[str, str]]:
    """Name and text of the files that describe the others."""
    if job.settings.form == "folder":
        for split, names in planned.splits.items():
            yield f"gt_sets/{split.replace('/', '-')}.txt", "".join(f"{name}\n" for name in names)
        yield "dataset.yaml", yaml.safe_dump(description(job), sort_keys=False, width=110, default_flow_style=None)
    elif any(key != name for key, name in planned.names.items()):
        stream = io.StringIO()
        rows = [(*name.split("/"), key) for key, name in planned.names.items()]
        csv.writer(stream, lineterminator="\n").writerows([("part", "number", "frame"), *rows])
        yield PREPARED, stream.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        summary = prepare(options)
    except SimoError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or options.out}: {error.strerror or error}"
    except KeyboardInterrupt:
        message = "interrupted; the files written so far are kept, the same command goes on with the rest"
    else:
        sys.stdout.write(summary + os.linesep)
        return 0
    sys.stderr.write(f"prepare.py: error: {message}\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
