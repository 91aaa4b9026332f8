"""Render furnished rooms with exact segmentation, depth and surface normals.

Run it as a script::

    python datasets/rooms/prepare.py --out more-rooms --count 50
    python datasets/rooms/prepare.py --out big --count 200 --size 336x252 --seed 5 --workers 4

The renderer itself is in ``renderer/``; what the files hold is told in ``README.md`` beside this script.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
NEEDED = ("embreex", "trimesh", "scipy", "PIL", "tqdm")
SMALLEST, LARGEST = 28, 2048  # pixels a side

EPILOG = """\
what is written
  images/ID.jpg        colour, JPEG quality 95
  segmentation/ID.png  class ids 1 to 13 (the 13 classes of NYUv2), uint8
  depth/ID.png         depth along the optical axis, millimetres, uint16
  normals/ID.png       n = 2 x / 255 - 1; x right, y down, z towards the viewer
  cameras.csv          intrinsics and pose of each picture, size and kind of its room
  gt_sets/SPLIT.txt    the ids of each split, shared out in order
  dataset.yaml, MODELS.csv (the models with their credits), render.json (seed and size)

A room depends on the seed and its number alone: the number of workers, the order and interruptions change
nothing. To go on after an interruption, give the same command again; to add rooms, a larger --count (and
--splits: a room keeps its split only if you say so), or another --first-index.

The furniture is Debian's package sweethome3d-furniture 1.8 (apt-get install sweethome3d-furniture). Its
models are under Creative Commons licences: pass MODELS.csv and the credits on with the pictures. Without
the package, --models boxes draws rooms with plain boxes for furniture, to try things out.

examples
  %(prog)s --out more-rooms --count 50
  %(prog)s --out big --count 200 --size 336x252 --seed 5 --workers 4
  %(prog)s --out probe --count 8 --models boxes --splits train=6,val=2
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prepare.py",
        description="Render furnished rooms with exact segmentation, depth and surface normals.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write to: new, empty, or of an earlier run",
    )
    add("--count", type=int, required=True, metavar="N", help="how many rooms")
    add("--first-index", type=int, default=0, metavar="I", help="number of the first room (default 0)")
    add(
        "--size",
        default="168x126",
        metavar="WxH",
        help="pixels; sides a multiple of 14 suit ViT-S/14 (168x126)",
    )
    add("--seed", type=int, default=0, help="another seed gives other rooms (default 0)")
    add(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="processes, up to 1 GB of memory each (default 2)",
    )
    add(
        "--models",
        default=None,
        metavar="DIR",
        help="folder of .sh3f files, or the word boxes (default: Debian's)",
    )
    add(
        "--splits",
        default=None,
        metavar="LIST",
        help="as train=35,val=15; adds up to --count (default 10:2:1:3 of train, calibration, val, test)",
    )
    return made


def parse_size(text: str) -> tuple[int, int]:
    """``168x126`` -> (168, 126).

    Raises:
        RenderError: it does not read so, or a side is out of bounds.
    """
    from renderer.catalogue import RenderError

    match = re.fullmatch(r"(\d+)[xX×](\d+)", text.strip())
    if not match:
        raise RenderError(f"--size is {text!r}; expected WIDTHxHEIGHT in pixels, as in 168x126")
    width, height = int(match[1]), int(match[2])
    if not (min(width, height) >= SMALLEST and max(width, height) <= LARGEST):
        raise RenderError(f"--size is {width}x{height}; each side must be {SMALLEST} to {LARGEST} pixels")
    return width, height


def run(options: argparse.Namespace) -> str:
    """Render what the options ask for; returns the summary.

    Raises:
        RenderError: a mistake in the options, or the furniture models are not installed.
    """
    from renderer.catalogue import DEBIAN_FOLDER, RenderError
    from renderer.output import RoomFolder, Settings, parse_splits
    from renderer.production import BOXES, Job, produce

    for name, least in (("count", 1), ("workers", 1), ("first_index", 0), ("seed", 0)):
        if getattr(options, name) < least:
            flag = name.replace("_", "-")
            raise RenderError(f"--{flag} is {getattr(options, name)}; it must be {least} or more")
    width, height = parse_size(options.size)
    splits = parse_splits(options.splits, options.first_index, options.count)
    boxes = options.models == BOXES
    settings = Settings(options.seed, width, height, BOXES if boxes else "sweethome3d-furniture")
    models = None if boxes else Path(options.models or DEBIAN_FOLDER)
    job = Job(options.out, settings, models, HERE / "MODELS.csv")
    started = time.monotonic()
    rendered, kept = produce(job, range(options.first_index, options.first_index + options.count), options.workers)
    folder = RoomFolder(options.out, settings)
    folder.write_splits(splits)
    folder.write_description(HERE / "dataset.yaml", job.table)
    seconds = time.monotonic() - started
    return f"{options.out}: {rendered} rooms rendered in {seconds:.0f} s, {kept} were there already"


def _fail(message: str) -> int:
    sys.stderr.write(f"prepare.py: error: {message}\n")
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parser().parse_args(arguments)
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    try:
        for name in NEEDED:
            __import__(name)
    except ImportError as error:
        return _fail(f"{error.name or error} is not installed: pip install simo-merge[render]")
    from renderer.catalogue import RenderError

    try:
        summary = run(options)
    except (RenderError, PermissionError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted; the rooms written so far are kept, the same command goes on with the rest")
    sys.stdout.write(summary + os.linesep)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
