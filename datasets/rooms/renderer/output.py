"""The folder that rooms are written to: names, encodings, what makes a room complete, lists and tables."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from renderer.catalogue import RenderError
from renderer.imaging import encode_depth, encode_normals
from renderer.room import RenderedRoom

VERSION = 1  # raise it when the same seed comes to draw another room
SETTINGS = "render.json"
COLUMNS = (
    "id",
    "fx",
    "fy",
    "cx",
    "cy",
    "hfov_deg",
    "height_m",
    "pitch_deg",
    "roll_deg",
    "room_x_m",
    "room_y_m",
    "room_z_m",
    "windows",
    "kind",
    "subseed",
)
FILES = {"images": ".jpg", "segmentation": ".png", "depth": ".png", "normals": ".png"}
SPLITS = {"train": 1000, "calibration": 200, "val": 100, "test": 300}  # default proportions
_PART = ".part"

Row = dict[str, str]


@dataclass(frozen=True)
class Settings:
    """What a folder of rooms is a function of, besides the numbers of the rooms."""

    seed: int
    width: int
    height: int
    models: str
    version: int = VERSION


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write to a temporary name beside ``path``, then rename: a file with its final name is complete."""
    part = path.with_name(path.name + _PART)
    with part.open("wb") as file:
        write(file)
    part.replace(path)


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


class RoomFolder:
    """An output folder, opened for one set of :class:`Settings`.

    Raises:
        RenderError: the folder was rendered with other settings, or holds other files.
    """

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root, self.settings = root, settings

    def open(self) -> None:
        """Make the sub-folders and note the settings, or check that those noted are the same."""
        note = self.root / SETTINGS
        if note.is_file():
            try:
                found = json.loads(note.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RenderError(
                    f"{note} is no JSON ({error}): delete the folder or name another with --out"
                ) from error
            for name, wanted in asdict(self.settings).items():
                if found.get(name) != wanted:
                    raise RenderError(
                        f"{self.root} was rendered with {name} {found.get(name)}, now {name} is {wanted}: "
                        f"name another folder with --out, or give the same {name}"
                    )
        elif self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise RenderError(
                f"{self.root} exists and was not made by this script: name a new or empty folder with --out"
            )
        for folder in (*FILES, "gt_sets"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        _write_text(note, json.dumps(asdict(self.settings), indent=2) + "\n")

    def paths(self, key: str) -> dict[str, Path]:
        """The four files of a room."""
        return {folder: self.root / folder / f"{key}{suffix}" for folder, suffix in FILES.items()}

    def complete(self, key: str) -> bool:
        """Whether all four files of a room exist and can be read at the right size."""
        for path in self.paths(key).values():
            try:
                with Image.open(path) as image:
                    image.load()
                    if image.size != (self.settings.width, self.settings.height):
                        return False
            except OSError:
                return False
        return True

    def write_room(self, index: int, room: RenderedRoom) -> Row:
        """Write the four files of a room; returns its row of ``cameras.csv``."""
        key = room_key(index)
        paths = self.paths(key)
        _write_image(paths["segmentation"], room.classes)
        _write_image(paths["depth"], encode_depth(room.depth))
        _write_image(paths["normals"], encode_normals(room.normals))
        _write_image(paths["images"], room.picture, format="JPEG", quality=95, subsampling=0)
        camera, size = room.camera, room.room.size
        values = (
            key,
            f"{camera.focal:.4f}",
            f"{camera.focal:.4f}",
            f"{camera.width / 2:g}",
            f"{camera.height / 2:g}",
            f"{camera.fov_deg:.3f}",
            f"{camera.position[2]:.3f}",
            f"{camera.pitch_deg:.2f}",
            f"{camera.roll_deg:.2f}",
            *(f"{metres:.2f}" for metres in size),
            str(len(room.room.windows)),
            room.room.kind,
            str(room.subseed),
        )
        return dict(zip(COLUMNS, values, strict=True))

    def read_cameras(self) -> dict[str, Row]:
        """The rows of ``cameras.csv`` by id; a line cut short by an interruption is passed over."""
        path = self.root / "cameras.csv"
        if not path.is_file():
            return {}
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values() and None not in row]
        return {row["id"]: row for row in rows if row["subseed"]}

    def append_camera(self, row: Row) -> None:
        """Add a row at once, so that an interruption loses no finished room."""
        path = self.root / "cameras.csv"
        text = _as_csv([row], header=not path.is_file())
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def write_cameras(self, rows: dict[str, Row]) -> None:
        """Write all rows anew, sorted by id."""
        _write_text(self.root / "cameras.csv", _as_csv([rows[key] for key in sorted(rows)], header=True))

    def write_splits(self, splits: dict[str, list[str]]) -> None:
        """Write ``gt_sets/NAME.txt``; ids of earlier runs stay in their list unless this run names them."""
        named = {key for keys in splits.values() for key in keys}
        for path in sorted((self.root / "gt_sets").glob("*.txt")):
            splits = {path.stem: [], **splits}
            kept = [key for key in path.read_text(encoding="utf-8").split() if key not in named]
            splits[path.stem] = sorted({*splits[path.stem], *kept})
        for name, keys in splits.items():
            _write_text(self.root / "gt_sets" / f"{name}.txt", "".join(f"{key}\n" for key in keys))

    def write_description(self, template: Path, models_table: Path) -> None:
        """``dataset.yaml`` after the one of the embedded rooms, and the models table with its credits."""
        lists = {p.stem: len(p.read_text().split()) for p in sorted((self.root / "gt_sets").glob("*.txt"))}
        counts = ", ".join(f"{name} {lists[name]}" for name in sorted(lists, key=_split_order))
        width, height = self.settings.width, self.settings.height
        own = {
            "note": f"note: {sum(lists.values())} synthetic images of furnished rooms, {width} x {height}, "
            f"seed {self.settings.seed}; {counts}",
            "images": f"images: {{folder: images, suffix: {FILES['images']}}}",
        }
        lines = template.read_text(encoding="utf-8").splitlines()
        lines = [own.get(line.partition(":")[0], line) for line in lines]
        _write_text(self.root / "dataset.yaml", "\n".join(lines) + "\n")
        with models_table.open("rb") as source:
            write_whole(self.root / "MODELS.csv", lambda file: shutil.copyfileobj(source, file))


def room_key(index: int) -> str:
    """The id of a room."""
    return f"{index:05d}"


def parse_splits(text: str | None, first: int, count: int) -> dict[str, list[str]]:
    """``train=35,val=15`` -> ids of each split, in order; None shares out as 1000 : 200 : 100 : 300.

    Raises:
        RenderError: not name=number pairs, a name twice, or the numbers do not add up to ``count``.
    """
    if text is None:
        shares = {name: count * part // sum(SPLITS.values()) for name, part in SPLITS.items()}
        shares["train"] += count - sum(shares.values())
        shares = {name: share for name, share in shares.items() if share}
    else:
        shares = {}
        for pair in text.split(","):
            name, _, number = (word.strip() for word in pair.partition("="))
            if not name.replace("_", "").isalnum() or not number.isdecimal() or name in shares:
                raise RenderError(f"--splits has {pair!r}; expected each name once, as in train=35,val=15")
            shares[name] = int(number)
        if sum(shares.values()) != count:
            raise RenderError(f"--splits adds up to {sum(shares.values())}, --count is {count}: make them equal")
    bounds = np.cumsum([first, *shares.values()])
    ranges = zip(shares, bounds[:-1], bounds[1:], strict=True)
    return {name: [room_key(index) for index in range(a, b)] for name, a, b in ranges}


def _split_order(name: str) -> tuple[int, str]:
    names = list(SPLITS)
    return (names.index(name) if name in names else len(names), name)


def _as_csv(rows: Iterable[Row], header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_image(path: Path, array: NDArray[np.generic], format: str = "PNG", **options: object) -> None:
    write_whole(path, lambda file: Image.fromarray(array).save(file, format=format, **options))
