"""Textured triangles: the one form in which walls, books and furniture models reach the ray tracer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

CLASSES = ("bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table",
           "tv", "wall", "window")  # fmt: skip
CLASS_ID = {name: number for number, name in enumerate(CLASSES, start=1)}  # 0 means unlabelled


def to_linear(srgb: NDArray[np.floating]) -> Array:
    """sRGB values in [0, 1] -> linear light (IEC 61966-2-1)."""
    srgb = np.asarray(srgb, dtype=np.float64)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: NDArray[np.floating]) -> Array:
    """Linear light in [0, 1] -> sRGB values in [0, 1]."""
    linear = np.clip(np.asarray(linear, dtype=np.float64), 0.0, 1.0)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


@dataclass(frozen=True, eq=False)
class Material:
    """A texture of albedo, (h, w, 3) linear RGB, row 0 at the top; it glows where ``emission`` > 0."""

    texture: NDArray[np.float32]
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    emission: float = 0.0

    @classmethod
    def plain(cls, srgb: Sequence[float] | Array, emission: float = 0.0) -> Material:
        """A uniform colour, given as three sRGB values in [0, 1]."""
        return cls(
            to_linear(np.asarray(srgb, dtype=np.float64)).reshape(1, 1, 3).astype(np.float32),
            emission=emission,
        )

    @classmethod
    def image(cls, srgb: NDArray[np.floating], emission: float = 0.0) -> Material:
        """A picture, (h, w, 3) sRGB in [0, 1]."""
        return cls(to_linear(np.clip(srgb, 0.0, 1.0)).astype(np.float32), emission=emission)

    def albedo(self, uv: Array) -> Array:
        """Bilinear look-up with wrap-around: uv (n, 2), v upwards -> (n, 3), never above 0.95."""
        height, width = self.texture.shape[:2]
        x = uv[:, 0] * width - 0.5
        y = (1.0 - uv[:, 1]) * height - 0.5
        left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        fx, fy = (x - left)[:, None], (y - top)[:, None]
        x0, x1, y0, y1 = left % width, (left + 1) % width, top % height, (top + 1) % height
        texture = self.texture
        upper = texture[y0, x0] * (1 - fx) + texture[y0, x1] * fx
        lower = texture[y1, x0] * (1 - fx) + texture[y1, x1] * fx
        return np.minimum((upper * (1 - fy) + lower * fy) * np.asarray(self.tint), 0.95)


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles (n, 3, 3) in metres, texture coordinates (n, 3, 2) and the material of each triangle (n,)."""

    triangles: Array
    uv: Array
    material: NDArray[np.int64]
    materials: tuple[Material, ...]

    @property
    def bounds(self) -> tuple[Array, Array]:
        """Lowest and highest corner of the bounding box."""
        points = self.triangles.reshape(-1, 3)
        return points.min(axis=0), points.max(axis=0)

    def placed(self, x: float, y: float, z: float, yaw: float) -> Mesh:
        """The mesh turned by ``yaw`` radians about the vertical (anticlockwise from above), then moved."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        px, py, pz = np.moveaxis(self.triangles, -1, 0)
        moved = np.stack([cos * px - sin * py + x, sin * px + cos * py + y, pz + z], axis=-1)
        return replace(self, triangles=moved)

    def tinted(self, tint: Array) -> Mesh:
        """The mesh with every albedo multiplied by ``tint`` (3,)."""
        red, green, blue = (float(part) for part in tint)
        colours = tuple(replace(m, tint=(m.tint[0] * red, m.tint[1] * green, m.tint[2] * blue)) for m in self.materials)
        return replace(self, materials=colours)


def join(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of many; materials are numbered on."""
    offsets = np.cumsum([0] + [len(m.materials) for m in meshes])
    return Mesh(
        np.concatenate([m.triangles for m in meshes]),
        np.concatenate([m.uv for m in meshes]),
        np.concatenate([m.material + k for m, k in zip(meshes, offsets, strict=False)]),
        tuple(material for m in meshes for material in m.materials),
    )


def quad(
    corner: ArrayLike, edge_u: ArrayLike, edge_v: ArrayLike, material: Material, tile: float | None = None
) -> Mesh:
    """A parallelogram; its texture covers it once, or repeats every ``tile`` metres."""
    start, u, v = (np.asarray(a, dtype=np.float64) for a in (corner, edge_u, edge_v))
    points = np.stack([start, start + u, start + u + v, start + v])
    repeat = (1.0, 1.0) if tile is None else (np.linalg.norm(u) / tile, np.linalg.norm(v) / tile)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float64) * repeat
    order = np.array([[0, 1, 2], [0, 2, 3]])
    return Mesh(points[order], uv[order], np.zeros(2, dtype=np.int64), (material,))


def box(low: Sequence[float], high: Sequence[float], material: Material, tile: float | None = None) -> Mesh:
    """An axis-aligned box from its lowest to its highest corner."""
    a, b = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    ex, ey, ez = np.diag(b - a)
    sides = [
        (a, ex, ez),
        (b - ez, -ex, ez),
        (a + ey, -ey, ez),
        (a + ex, ey, ez),
        (a + ez, ex, ey),
        (a, ex, ey),
    ]
    return replace(
        join([quad(corner, u, v, material, tile) for corner, u, v in sides]),
        material=np.zeros(12, dtype=np.int64),
        materials=(material,),
    )


@dataclass
class SceneBuilder:
    """Collects meshes, each with its class and the number of its item (0: the room itself)."""

    meshes: list[Mesh] = field(default_factory=list)
    classes: list[NDArray[np.uint8]] = field(default_factory=list)
    items: list[NDArray[np.int32]] = field(default_factory=list)

    def add(self, mesh: Mesh, class_name: str, item: int = 0) -> None:
        """Add ``mesh`` as part of the item numbered ``item``."""
        count = len(mesh.triangles)
        self.meshes.append(mesh)
        self.classes.append(np.full(count, CLASS_ID[class_name], dtype=np.uint8))
        self.items.append(np.full(count, item, dtype=np.int32))

    def build(self) -> Scene:
        """The finished scene."""
        return Scene(join(self.meshes), np.concatenate(self.classes), np.concatenate(self.items))


@dataclass(frozen=True, eq=False)
class Scene:
    """All triangles of a room, with the class id and item number of each."""

    mesh: Mesh
    classes: NDArray[np.uint8]
    items: NDArray[np.int32]

    def material_of(self, faces: NDArray[np.int64], weights: Array) -> tuple[Array, Array]:
        """Albedo (n, 3) and emission (n,) at barycentric ``weights`` (n, 3) of ``faces`` (n,)."""
        uv = np.einsum("nk,nkc->nc", weights, self.mesh.uv[faces])
        numbers = self.mesh.material[faces]
        albedo, emission = np.empty((len(faces), 3)), np.empty(len(faces))
        order = np.argsort(numbers, kind="stable")
        present, starts = np.unique(numbers[order], return_index=True)
        for number, rows in zip(present, np.split(order, starts[1:]), strict=True):
            material = self.mesh.materials[number]
            albedo[rows] = material.albedo(uv[rows])
            emission[rows] = material.emission
        return albedo, emission
