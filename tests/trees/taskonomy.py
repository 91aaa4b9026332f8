"""Small Taskonomy copies: one world of views, written in each of the layouts, with the traps that real copies have."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]
View = dict[str, Array]
World = dict[str, dict[str, View]]
"""Building -> view -> domain -> the numbers of its file."""

SIZE = (16, 24)
"""Published files are 512 x 512; the reader takes any size."""
BUILDINGS = ("wiconisco", "stockman", "ihlen", "allensville")
"""In the order in which their folders are made. One is of tiny's val, one of its test, two of its train split."""
VIEWS = ("point_2_view_1", "point_10_view_0", "point_2_view_10", "point_1_view_0")
"""As text, file names sort 10 before 1; numbers, and bare keys, do not."""
SORTED_VIEWS = ("point_10_view_0", "point_1_view_0", "point_2_view_10", "point_2_view_1")
EMPTY = "allensville/point_1_view_0"
"""This view looks out of the scanned mesh altogether."""
ABSENT_ID = 12
"""No view shows a toaster."""

FILE_NAMES = {"segment_semantic": "segmentsemantic", "mask_valid": "depth_zbuffer"}
DOMAINS = (
    "rgb",
    "segment_semantic",
    "depth_zbuffer",
    "depth_euclidean",
    "normal",
    "reshading",
    "principal_curvature",
    "edge_texture",
    "edge_occlusion",
    "keypoints2d",
    "keypoints3d",
    "mask_valid",
)
TASKS = {
    "segmentation": "segment_semantic",
    "depth": "depth_zbuffer",
    "depth_euclidean": "depth_euclidean",
    "normals": "normal",
    "reshading": "reshading",
    "principal_curvature": "principal_curvature",
    "edge_texture": "edge_texture",
    "edge_occlusion": "edge_occlusion",
    "keypoints2d": "keypoints2d",
    "keypoints3d": "keypoints3d",
}

ZERO_SUM = (218, 37, 128)
"""A stored normal (1, -1, 0) / sqrt(2): valid, though its components sum to 0."""
NOT_UNIT = (128, 128, 64)
"""A stored normal towards the viewer that is half a unit long."""
GREYS = ((128, 128, 128), (127, 127, 127))
"""What normals hold where there is no surface."""


def make_world(buildings: Iterable[str] = BUILDINGS, views: Iterable[str] = VIEWS) -> World:
    """The same views each time; what a view shows depends on its name alone."""
    return {building: {view: make_view(f"{building}/{view}") for view in views} for building in buildings}


def make_view(key: str) -> View:
    """Numbers for every domain, in the types of the published files, with traps at the places named below.

    Row 0: columns 0 to 2 no surface (65535, grey, 0), column 3 a normal that sums to 0, column 4 one that is not of
    unit length. Row 1: class ids 0 (uncertain), 1 (background) and 17 (vase).
    """
    random = np.random.default_rng(zlib.crc32(key.encode()))
    surface = np.zeros(SIZE, bool) if key == EMPTY else np.ones(SIZE, bool)
    surface[0, :3] = False
    depth = random.integers(400, 8000, SIZE, np.uint16)
    ids = random.choice([i for i in range(18) if i != ABSENT_ID], SIZE).astype(np.uint8)
    ids[1, :3] = 0, 1, 17
    normal = _normals(random)
    normal[0, 3], normal[0, 4] = ZERO_SUM, NOT_UNIT
    normal[~surface] = GREYS[0]
    normal[0, 1] = GREYS[1]
    curvature = np.stack([*random.integers(1, 255, (2, *SIZE), np.uint8), np.zeros(SIZE, np.uint8)], axis=-1)
    curvature[0, 3, :2] = 127  # flat
    grey = random.integers(20, 256, SIZE, np.uint8)
    grey[~surface] = 13
    return {
        "rgb": random.integers(0, 256, (*SIZE, 3), np.uint8),
        "segment_semantic": ids,
        "depth_zbuffer": np.where(surface, depth, 65535).astype(np.uint16),
        "depth_euclidean": np.where(surface, depth + 100, 65535).astype(np.uint16),
        "normal": normal,
        "reshading": np.stack([grey] * 3, axis=-1),
        "principal_curvature": np.where(surface[..., None], curvature, 0).astype(np.uint8),
        "edge_texture": random.integers(0, 11042, SIZE, np.uint16),
        "edge_occlusion": np.where(surface, random.integers(0, 4600, SIZE), 0).astype(np.uint16),
        "keypoints2d": random.integers(0, 3130, SIZE, np.uint16),
        "keypoints3d": np.where(surface, random.integers(0, 64132, SIZE), 0).astype(np.uint16),
        "mask_valid": np.where(surface, 255, 0).astype(np.uint8),
    }


def _normals(random: np.random.Generator) -> Array:
    """(H, W, 3) bytes of unit vectors that face the viewer, whose z is negative on disk."""
    vectors = random.normal(size=(*SIZE, 3))
    vectors[..., 2] = -np.abs(vectors[..., 2]) - 0.2
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.round((vectors + 1) * 127.5).astype(np.uint8)


def write_official(root: Path, world: World | None = None, domains: Iterable[str] = DOMAINS) -> World:
    """`DOMAIN/BUILDING/FILE`."""
    return _write(lambda domain, building: root / domain / building, world, domains)


def write_downloader(root: Path, world: World | None = None, domains: Iterable[str] = DOMAINS) -> World:
    """`DOMAIN/taskonomy/BUILDING/FILE`, beside another component of the downloader's data set."""
    other = root / "rgb" / "replica" / "apartment_0"
    other.mkdir(parents=True)
    (other / "point_0_view_0_domain_rgb.png").write_bytes(b"of another data set")
    return _write(lambda domain, building: root / domain / "taskonomy" / building, world, domains)


def write_tars(root: Path, world: World | None = None, domains: Iterable[str] = DOMAINS) -> World:
    """`BUILDING_DOMAIN/DOMAIN/FILE`."""
    return _write(lambda domain, building: root / f"{building}_{domain}" / domain, world, domains)


def write_buildings(root: Path, world: World | None = None, domains: Iterable[str] = DOMAINS) -> World:
    """`BUILDING/DOMAIN/FILE`."""
    return _write(lambda domain, building: root / building / domain, world, domains)


def write_building(root: Path, world: World | None = None, domains: Iterable[str] = DOMAINS) -> World:
    """`DOMAIN/FILE` of the building that the folder is named after."""
    whole = make_world([root.name]) if world is None else world
    return _write(lambda domain, building: root / domain, {root.name: whole[root.name]}, domains)


WRITERS: dict[str, Callable[..., World]] = {
    "official": write_official,
    "downloader": write_downloader,
    "tars": write_tars,
    "buildings": write_buildings,
    "building": write_building,
}
"""Layout -> what writes it."""


def _write(place: Callable[[str, str], Path], world: World | None, domains: Iterable[str]) -> World:
    whole = make_world() if world is None else world
    for building, views in whole.items():
        for view, numbers in views.items():
            for domain in domains:
                write_file(place(domain, building) / file_name(view, domain), numbers[domain])
    return whole


def file_name(view: str, domain: str) -> str:
    """`point_P_view_V_domain_DOMAIN.png`, where two domains go by another name."""
    return f"{view}_domain_{FILE_NAMES.get(domain, domain)}.png"


def write_file(path: Path, numbers: Array) -> None:
    """A PNG of these numbers: 16-bit ones stay 16-bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers).save(path)


def damage(path: Path) -> None:
    """Cut a file off in the middle, as an interrupted download does."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def to_eight_bits(path: Path) -> None:
    """What a tool that knows no 16-bit pictures makes of one."""
    with Image.open(path) as picture:
        numbers = np.array(picture)
    Image.fromarray((numbers >> 8).astype(np.uint8)).save(path)


def flat(world: World) -> Mapping[str, View]:
    """Key -> view."""
    return {f"{building}/{view}": numbers for building, views in world.items() for view, numbers in views.items()}
