"""Where small things can stand on furniture: tops and shelf boards, found by rays on the model itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from renderer.catalogue import Model
from renderer.geometry import Array, Mesh

_LEVEL = 0.006  # metres by which a surface may be uneven
_STEP = 0.03  # metres between the probes of a shelf


@dataclass(frozen=True)
class Slot:
    """A stretch of shelf board in the model's frame: x from x0 to x1, front edge y, height z, room above."""

    x0: float
    x1: float
    y: float
    z: float
    clearance: float
    depth: float


class Probe:
    """Vertical and horizontal probes of one model, in its own frame."""

    def __init__(self, mesh: Mesh) -> None:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        self.low, self.high = mesh.bounds
        self._scene = EmbreeScene()
        self._mesh = TriangleMesh(self._scene, np.ascontiguousarray(mesh.triangles, dtype=np.float32))

    def distance(self, origins: Array, direction: tuple[float, float, float]) -> Array:
        """Distance (n,) to the first triangle along a unit ``direction``; infinite where there is none."""
        start = np.ascontiguousarray(origins, dtype=np.float32)
        way = np.ascontiguousarray(np.broadcast_to(np.array(direction, dtype=np.float32), start.shape))
        found = self._scene.run(start, way, query="DISTANCE").astype(np.float64)
        return np.where(found > 1e6, np.inf, found)

    def top(self, centre: Array, half: Array) -> float | None:
        """Height of the level top under a footprint about ``centre`` (2,) with half sizes ``half`` (2,)."""
        corners = np.array([[0, 0], [-1, -1], [1, -1], [1, 1], [-1, 1], [0, 1], [0, -1]]) * half + centre
        above = self.high[2] + 0.5
        z = above - self.distance(np.column_stack([corners, np.full(len(corners), above)]), (0.0, 0.0, -1.0))
        if not np.isfinite(z).all() or z.max() - z.min() > _LEVEL or z[0] < 0.2:
            return None
        return float(z.max())


def find_top(model: Model, probe: Probe, size: Array, rng: np.random.Generator) -> tuple[float, float, float] | None:
    """A random place on top of ``model`` for a thing of ``size``: x, y and height in the model's frame."""
    half = size[:2] / 2
    room = (probe.high - probe.low)[:2] / 2 - half
    if (room < 0).any():
        return None
    for _ in range(6):
        centre = rng.uniform(-room, room)
        height = probe.top(centre, half)
        if height is not None:
            return float(centre[0]), float(centre[1]), height
    return None


def shelf_slots(probe: Probe) -> list[Slot]:
    """Boards inside an open shelf that are reachable from the front and at least 17 cm high and wide."""
    _, depth, height = probe.high - probe.low
    xs = np.arange(probe.low[0] + 0.02, probe.high[0] - 0.015, _STEP)
    y = probe.low[1] + min(0.45 * depth, 0.15)
    found: list[Slot] = []
    hand = np.array([0.0, 0.0, 0.08])  # a reach this far above a board decides whether its front is open
    for level in _levels(probe, xs, y):
        heights = np.full(len(xs), level + 0.004)
        inside = np.column_stack([xs, np.full(len(xs), y), heights])
        above = probe.distance(inside, (0.0, 0.0, 1.0))
        below = probe.distance(inside, (0.0, 0.0, -1.0))
        before = probe.distance(inside + hand, (0.0, -1.0, 0.0))
        behind = probe.distance(inside + hand, (0.0, 1.0, 0.0))
        good = (below < 0.012) & (above > 0.17) & ~np.isfinite(before) & (behind > 0.02)
        above = np.minimum(above, 0.36)
        for first, last in _runs(good):
            x0, x1 = xs[first] + 0.005, xs[last] - 0.005
            if x1 - x0 >= 0.15:
                back = min(float(behind[first : last + 1].min()), float(probe.high[1]) - y)
                front = max(probe.low[1] + 0.015, y - 0.12)
                clearance = float(above[first : last + 1].min())
                deep = float(y - front + back - 0.005)
                found.append(Slot(float(x0), float(x1), float(front), level, clearance, deep))
    return [slot for slot in found if slot.depth > 0.1 and slot.z < height - 0.1]


def _levels(probe: Probe, xs: Array, y: float) -> list[float]:
    """Heights (metres) of surfaces met on the way down through the shelf, each once."""
    levels: list[float] = []
    z = np.full(len(xs), probe.high[2] + 0.05)
    for _ in range(24):
        step = probe.distance(np.column_stack([xs, np.full(len(xs), y), z]), (0.0, 0.0, -1.0))
        alive = np.isfinite(step)
        if not alive.any():
            break
        z = np.where(alive, z - np.where(alive, step, 0.0), probe.low[2] - 1.0)
        for height, count in zip(*np.unique(np.round(z[alive] / 0.005), return_counts=True), strict=True):
            value = float(np.median(z[alive][np.round(z[alive] / 0.005) == height]))
            if count >= 4 and all(abs(value - level) > 0.012 for level in levels):
                levels.append(value)
        z = z - 0.004
    return levels


def _runs(good: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(np.int8), [0]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
