"""Rays against triangles: Embree finds the triangle, float64 arithmetic finds the point on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from renderer.geometry import Array, Scene

OFFSET = 1e-3  # metres that a secondary ray starts off its surface, against hitting that surface again
_RETRIES = 4


class RayEscaped(RuntimeError):
    """A ray left the closed room: the geometry has a hole, and the room must be drawn again."""


@dataclass(frozen=True, eq=False)
class Hits:
    """First hits: triangle (n,), ray parameter t (n,), point, barycentric weights and normal, each (n, 3).

    The normal is the triangle's own, of unit length and turned towards the origin of the ray.
    """

    face: NDArray[np.int64]
    t: Array
    point: Array
    weights: Array
    normal: Array


class Tracer:
    """Ray queries on one scene."""

    def __init__(self, scene: Scene) -> None:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        triangles = scene.mesh.triangles
        self._corner = triangles[:, 0]
        self._edges = triangles[:, 1] - self._corner, triangles[:, 2] - self._corner
        self._cross = np.cross(*self._edges)
        self._embree = EmbreeScene()
        self._mesh = TriangleMesh(self._embree, np.ascontiguousarray(triangles, dtype=np.float32))

    def first(self, origins: Array, directions: Array) -> Hits:
        """First hit of each ray (n, 3), (n, 3); directions need no unit length.

        Raises:
            RayEscaped: a ray hits nothing, even when it is turned by a few 1e-5 rad (a ray can slip through
                the shared edge of two triangles in float32).
        """
        face = self._faces(origins, directions)
        corner, cross = self._corner[face], self._cross[face]
        slope = np.einsum("nc,nc->n", cross, directions)
        slope = np.where(np.abs(slope) < 1e-15, 1e-15, slope)
        t = np.einsum("nc,nc->n", cross, corner - origins) / slope
        point = origins + t[:, None] * directions
        weights = self._barycentric(face, point - corner, cross)
        length = np.linalg.norm(cross, axis=1)
        normal = cross * (-np.sign(slope) / np.maximum(length, 1e-30))[:, None]
        return Hits(face, t, point, weights, normal)

    def _faces(self, origins: Array, directions: Array) -> NDArray[np.int64]:
        start = np.ascontiguousarray(origins, dtype=np.float32)
        face = self._embree.run(start, np.ascontiguousarray(directions, dtype=np.float32)).astype(np.int64)
        for attempt in range(_RETRIES):
            lost = np.flatnonzero(face < 0)
            if not len(lost):
                return face
            turned = directions[lost] + 1e-5 * (attempt + 1) * np.roll(directions[lost], 1, axis=1)
            face[lost] = self._embree.run(start[lost], turned.astype(np.float32))
        if (face < 0).any():
            raise RayEscaped(f"{int((face < 0).sum())} of {len(face)} rays hit nothing")
        return face

    def _barycentric(self, face: NDArray[np.int64], local: Array, cross: Array) -> Array:
        area = np.maximum(np.einsum("nc,nc->n", cross, cross), 1e-30)
        w1 = np.einsum("nc,nc->n", np.cross(local, self._edges[1][face]), cross) / area
        w2 = np.einsum("nc,nc->n", np.cross(self._edges[0][face], local), cross) / area
        return np.clip(np.stack([1 - w1 - w2, w1, w2], axis=1), 0.0, 1.0)

    def clear(self, origins: Array, targets: Array) -> NDArray[np.bool_]:
        """True where nothing lies between origin and target (n, 3); the last 2 mm are not looked at."""
        way = targets - origins
        reach = np.linalg.norm(way, axis=1)
        unit = (way / np.maximum(reach, 1e-9)[:, None]).astype(np.float32)
        far = np.maximum(reach - 2e-3, 1e-4).astype(np.float32)
        start = np.ascontiguousarray(origins, dtype=np.float32)
        blocked = self._embree.run(start, unit, dists=far, query="OCCLUDED")
        return np.asarray(blocked) < 0
