"""Small copies of NYUv2: one world of frames, written in each of the layouts, with the traps that real copies have.

Published frames are 480 x 640, MTAN's 288 x 384; the reader takes any size. Where a layout stores something in another
way than the others (axes of normals, ids, units), it is written out here once more, from what is known of the files
and without the reader's own tables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]

SIZE = (16, 24)
COUNT = 9
TRAIN = (3, 4, 5, 6, 7, 8)
TEST = (1, 2, 9)
"""Frames of the official lists among the first nine."""
ALL_VOID = 4
"""Nothing is labelled in this frame."""
CLASSES = {  # label of 894: (class of 40, class of 13), as named in the data set's own tables
    0: (0, 0),
    21: (1, 12),  # wall
    11: (2, 5),  # floor
    3: (3, 6),  # cabinet
    157: (4, 1),  # bed
    5: (5, 4),  # chair
    83: (6, 9),  # sofa
    19: (7, 10),  # table
    28: (8, 12),  # door, a wall among the 13
    59: (9, 13),  # window
    64: (11, 8),  # picture
    4: (22, 3),  # ceiling
    331: (31, 7),  # person: this label does not fit into a byte
    20: (40, 7),  # unknown, which is labelled otherprop
}
ABSENT = 10
"""Index of the class (tv, of 13) that no frame has."""
DIAGONAL = (8, 5), (8, 6)
"""Pixels whose valid normals are (1, 1, 0) and (1, -1, 0) / sqrt 2: in one layout or another their sum is 0."""
BORDER = 2
"""Pixels of the border without a normal."""
COVERED = (8, 12)
"""A pixel that has a plausible normal in Eigen's picture and is not valid by its mask."""


@dataclass(frozen=True)
class Frame:
    """What is true of one frame; `labels` are of 894, `normals` (H, W, 3) are x right, y down, z to the viewer."""

    image: Array
    labels: Array
    depth: Array
    hole: Array
    normals: Array
    valid: Array
    edges: Array

    @property
    def classes_13(self) -> Array:
        """Class 1 to 13, 0 for unlabelled."""
        return _mapped(self.labels, 1)

    @property
    def classes_40(self) -> Array:
        """Class 1 to 40, 0 for unlabelled."""
        return _mapped(self.labels, 0)

    @property
    def sparse_depth(self) -> Array:
        """The depth with holes, which are 0."""
        return np.where(self.hole, np.float32(0), self.depth)

    @property
    def eigen(self) -> Array:
        """Right, away, up; zero where there is none."""
        x, y, z = np.moveaxis(self.normals, -1, 0)
        return np.where(self.valid[..., None], np.stack([x, -z, -y], axis=-1), 0.0)

    @property
    def ladicky(self) -> Array:
        """Away, down, right; there is one everywhere."""
        x, y, z = np.moveaxis(self.normals, -1, 0)
        return np.stack([-z, y, x], axis=-1)

    @property
    def nyud(self) -> Array:
        """Right, up, to the viewer; zero where there is none."""
        return np.where(self.valid[..., None], self.normals * np.array([1.0, -1.0, 1.0]), 0.0)


@dataclass(frozen=True)
class World:
    """Frames by their official number."""

    frames: dict[int, Frame] = field(default_factory=dict)


def make_world(seed: int = 0, size: tuple[int, int] = SIZE) -> World:
    rng = np.random.default_rng(seed)
    return World({number: _frame(rng, number, size) for number in range(1, COUNT + 1)})


def _frame(rng: np.random.Generator, number: int, size: tuple[int, int]) -> Frame:
    ids = [label for label in CLASSES if label]
    blocks = rng.choice([0, *ids], size=(size[0] // 4, size[1] // 4))
    labels = np.kron(blocks, np.ones((4, 4), dtype=np.uint16)).astype(np.uint16)
    labels[0, :] = 0  # the border of real frames is unlabelled
    if number == ALL_VOID:
        labels[:] = 0
    normals = rng.normal(size=(*size, 3))
    normals[..., 2] = np.abs(normals[..., 2]) + 0.3
    for (row, column), sign in zip(DIAGONAL, (1, -1), strict=True):
        normals[row, column] = (1, sign, 0)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    valid = np.zeros(size, dtype=bool)
    valid[BORDER:-BORDER, BORDER:-BORDER] = True
    valid[COVERED] = False
    changes = np.zeros(size, dtype=np.uint8)
    changes[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return Frame(
        image=rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        labels=labels,
        depth=rng.uniform(0.7, 9.9, size).astype(np.float32),
        hole=rng.random(size) < 0.1,
        normals=normals,
        valid=valid,
        edges=changes,
    )


def _mapped(labels: Array, which: int) -> Array:
    found = np.zeros(labels.shape, dtype=np.int64)
    for label, classes in CLASSES.items():
        found[labels == label] = classes[which]
    return found


def bytes_of(normals: Array) -> Array:
    """n = 2 x / 255 - 1, rounded; a zero vector becomes grey."""
    return np.round((normals + 1) * 127.5).astype(np.uint8)


def save(path: Path, values: Array, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path, **options)


def write_official(root: Path, world: World, archive: bool = True, splits: bool = True) -> Path:
    """`nyu_depth_v2_labeled.mat` with axes as MATLAB 7.3 leaves them, `splits.mat`, and Eigen's archive."""
    import h5py
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    frames = list(world.frames.values())
    path = root / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w", userblock_size=512) as file:  # MATLAB's header lies in front
        put = {"chunks": True, "compression": "gzip"}
        file.create_dataset("images", data=np.stack([f.image.transpose(2, 1, 0) for f in frames]), **put)
        file.create_dataset("depths", data=np.stack([f.depth.T for f in frames]), **put)
        file.create_dataset("rawDepths", data=np.stack([f.sparse_depth.T for f in frames]), **put)
        file.create_dataset("labels", data=np.stack([f.labels.T for f in frames]), **put)
        file.create_dataset("instances", data=np.stack([(f.labels.T > 0).astype(np.uint8) for f in frames]), **put)
        file.create_dataset("accelData", data=np.zeros((4, len(frames)), np.float32))
        word = file.create_dataset("#refs#/a", data=np.array([[ord(letter)] for letter in "book"], np.uint16))
        file.create_dataset("names", data=np.array([[word.ref]], dtype=h5py.ref_dtype))
    if splits:
        savemat(
            root / "splits.mat",
            {f"{name}Ndxs": _official_numbers(name).reshape(-1, 1) for name in ("train", "test")},
        )
    if archive:
        for number, frame in world.frames.items():
            picture = bytes_of(frame.eigen)
            picture[COVERED] = bytes_of(frame.normals * [1, -1, -1])[COVERED]
            save(root / "normals_gt" / "normals" / f"{number - 1:04d}.png", picture)
            save(root / "normals_gt" / "masks" / f"{number - 1:04d}.png", frame.valid.astype(np.uint8) * 255)
    return path


def _official_numbers(name: str) -> Array:
    """The official list: the frames of the world, and all the others."""
    from simo_merge.data.splits import published

    return np.array([int(key) for key in published("nyuv2", name)], dtype=np.uint16)


def mtan_parts(world: World) -> Iterator[tuple[str, int, Frame]]:
    """Part, number and frame. In this world MTAN's numbers follow the official lists; of the real set nobody knows."""
    for part, numbers in (("train", TRAIN), ("val", TEST)):
        for index, number in enumerate(numbers):
            yield part, index, world.frames[number]


def write_mtan(root: Path, world: World, label_type: type = np.float64, image_type: type = np.float64) -> Path:
    """MTAN's arrays; label and image are float64 as is inferred of the real ones."""
    for part, index, frame in mtan_parts(world):
        folder, name = root / part, f"{index}.npy"
        save(folder / "image" / name, (frame.image / 255).astype(image_type))
        save(folder / "label" / name, (frame.classes_13 - 1).astype(label_type))
        save(folder / "depth" / name, frame.sparse_depth[..., None])
        save(folder / "normal" / name, frame.eigen.astype(np.float32))
    return root


Lists = Literal["list", "large", "fixed", "extension"]


def write_parquet(root: Path, world: World, lists: Lists = "list", shards: int = 2, group_rows: int = 2) -> Path:
    """The Hub's files: nested lists, channels first, and a column of noise."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "data").mkdir(parents=True, exist_ok=True)
    for part in ("train", "val"):
        frames = [frame for name, _, frame in mtan_parts(world) if name == part]
        cuts = np.array_split(np.arange(len(frames)), shards)
        for number, rows in enumerate(cuts):
            columns = _columns([frames[row] for row in rows])
            with _extension() if lists == "extension" else contextlib.nullcontext() as kind:
                table = pa.table({name: _nested(values, lists, kind) for name, values in columns.items()})
                path = root / "data" / f"{part}-{number:05d}-of-{shards:05d}.parquet"
                pq.write_table(table, path, row_group_size=group_rows)
    return root


def _columns(frames: list[Frame]) -> dict[str, Array]:
    first = [np.moveaxis(f.image / 255, -1, 0) for f in frames]
    return {
        "image": np.stack(first).astype(np.float32),
        "segmentation": np.stack([f.classes_13 - 1 for f in frames]).astype(np.int64),
        "depth": np.stack([f.sparse_depth[None] for f in frames]).astype(np.float32),
        "normal": np.stack([np.moveaxis(f.eigen, -1, 0) for f in frames]).astype(np.float32),
        "noise": np.zeros((len(frames), 1, *frames[0].labels.shape), np.float32),
    }


def _nested(values: Array, lists: Lists, kind: Any) -> Any:
    """(N, ...) as an arrow array of N nested lists."""
    import pyarrow as pa

    nested = pa.array(values.ravel())
    for axis in range(values.ndim - 1, 0, -1):
        size, count = values.shape[axis], int(np.prod(values.shape[:axis]))
        if lists == "fixed":
            nested = pa.FixedSizeListArray.from_arrays(nested, size)
        else:
            large = lists == "large"
            offsets = pa.array(np.arange(count + 1) * size, pa.int64() if large else pa.int32())
            nested = (pa.LargeListArray if large else pa.ListArray).from_arrays(offsets, nested)
    return pa.ExtensionArray.from_storage(kind(nested.type), nested) if kind is not None else nested


@contextlib.contextmanager
def _extension() -> Iterator[Any]:
    """A type like those that the library `datasets` registers for arrays, known as long as this lasts."""
    import pyarrow as pa

    class ArrayType(pa.ExtensionType):  # type: ignore[misc]
        def __init__(self, storage: Any) -> None:
            super().__init__(storage, "datasets.features.features.Array3DExtensionType")

        def __arrow_ext_serialize__(self) -> bytes:
            return b'{"shape": []}'

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: Any, serialised: bytes) -> Any:
            return cls(storage)

    pa.register_extension_type(ArrayType(pa.float32()))
    try:
        yield ArrayType
    finally:
        pa.unregister_extension_type("datasets.features.features.Array3DExtensionType")


def write_extracted(root: Path, world: World, old: bool = False, zip_folder: bool = False) -> Path:
    """The toolkit's pictures; `old` ones have classes from 1 and 0 for unlabelled."""
    normals = root / "normal" / "nyu_normals_gt" if zip_folder else root / "normal"
    for number, frame in world.frames.items():
        name = f"{'train' if number in TRAIN else 'test'}/{number:05d}.png"
        save(root / "image" / name, frame.image)
        for count, ids in ((13, frame.classes_13), (40, frame.classes_40)):
            stored = ids.astype(np.uint8)
            save(root / f"seg{count}" / name, stored if old else stored - np.uint8(1))  # 0 - 1 is 255
        save(root / "depth" / name, (frame.depth * 1e3).astype(np.uint16))
        save(normals / name, bytes_of(frame.ladicky))
    return root


Variant = Literal["mtl", "astmt", "invpt"]


def write_nyud_mt(root: Path, world: World, variant: Variant = "mtl") -> Path:
    """NYUD-MT as MTL-PyTorch, ASTMT or InvPT have it; names are those of the official frames."""
    from scipy.io import savemat

    for number, frame in world.frames.items():
        name = f"{number:04d}"
        jpeg = {"quality": 100, "subsampling": 0}
        picture = ".png" if variant == "invpt" else ".jpg"
        save(root / "images" / f"{name}{picture}", frame.image, **({} if variant == "invpt" else jpeg))
        if variant == "astmt":
            for folder, values in (("segmentation", frame.classes_40.astype(np.uint8)), ("depth", frame.sparse_depth)):
                (root / folder).mkdir(parents=True, exist_ok=True)
                savemat(root / folder / f"{name}.mat", {folder: values})
            save(root / "normals" / f"{name}.jpg", bytes_of(frame.nyud), **jpeg)
        else:
            save(root / "segmentation" / f"{name}.png", frame.classes_40.astype(np.uint8))
            save(root / "depth" / f"{name}.npy", frame.sparse_depth)
        if variant == "mtl":
            save(root / "normals" / f"{name}.npy", frame.nyud.astype(np.float32))
            save(root / "edge" / f"{name}.npy", frame.edges.astype(np.float32))
        else:
            save(root / "edge" / f"{name}.png", frame.edges * np.uint8(255))
        if variant == "invpt":
            save(root / "normals" / f"{name}.png", bytes_of(frame.nyud))
    (root / "gt_sets").mkdir()
    for list_name, numbers in (("train", TRAIN), ("val", TEST)):
        text = "".join(f"{number:04d}\n" for number in numbers)
        (root / "gt_sets" / f"{list_name}.txt").write_text(text, encoding="utf-8")
    return root


def write_multimae(root: Path, world: World) -> Path:
    """MultiMAE's pictures: numbers from 0, classes with a palette, 16 bits for 10 m."""
    for number, frame in world.frames.items():
        folder, name = root / ("train" if number in TRAIN else "test"), f"{number - 1:04d}.png"
        save(folder / "rgb" / "data" / name, frame.image)
        save(folder / "depth" / "data" / name, (frame.depth * (2**16 / 10)).astype(np.uint16))
        classes = Image.fromarray(frame.classes_40.astype(np.uint8), mode="P")
        classes.putpalette([channel for index in range(41) for channel in (index * 6, 255 - index * 6, 90)])
        path = folder / "semseg" / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        classes.save(path)
        save(folder / "normal" / "data" / name, bytes_of(frame.eigen))
        save(folder / "mask" / "data" / name, frame.valid.astype(np.uint8) * 255)
    return root
