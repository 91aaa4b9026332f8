"""Where things may stand: footprints that do not overlap on the floor, and spans that do not on the walls."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from renderer.geometry import Array

GAP = 0.03  # metres kept free between footprints, and between a piece and the wall (skirting is 1.5 cm thick)
_TRIES = 14


@dataclass
class Wall:
    """A wall as its viewer sees it: ``s`` runs to the right from ``origin``, ``inward`` into the room."""

    origin: Array
    along: Array
    inward: Array
    length: float
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    @property
    def yaw(self) -> float:
        """Turn of a piece whose back stands against this wall."""
        return float(np.arctan2(self.along[1], self.along[0]))

    def point(self, s: float, out: float, z: float) -> Array:
        """Room coordinates of the point ``s`` along, ``out`` metres before the wall and ``z`` high."""
        return self.origin + s * self.along + out * self.inward + np.array([0.0, 0.0, z])

    def free(self, s0: float, s1: float, z0: float, z1: float) -> bool:
        """Whether nothing hangs or stands on the part [s0, s1] x [z0, z1] of the wall."""
        if s0 < 0 or s1 > self.length:
            return False
        return not any(s0 < b and a < s1 and z0 < d and c < z1 for a, b, c, d in self.taken)


@dataclass(frozen=True)
class Spot:
    """A place for a piece: centre, turn (radians) and the half sizes of its axis-aligned footprint."""

    x: float
    y: float
    yaw: float
    half_x: float
    half_y: float

    @property
    def rectangle(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of the footprint."""
        return self.x - self.half_x, self.y - self.half_y, self.x + self.half_x, self.y + self.half_y


def spot(x: float, y: float, yaw: float, size: Array) -> Spot:
    """The spot of a piece of ``size`` (width, depth, ...); if turned, its bounding rectangle counts."""
    cos, sin = abs(np.cos(yaw)), abs(np.sin(yaw))
    width, depth = float(size[0]), float(size[1])
    return Spot(float(x), float(y), float(yaw), (cos * width + sin * depth) / 2, (sin * width + cos * depth) / 2)


class FloorPlan:
    """The floor of a room of ``size`` (3,) and what stands on it."""

    def __init__(self, size: Array) -> None:
        x, y = float(size[0]), float(size[1])
        self.size = size
        self.taken: list[tuple[float, float, float, float]] = []
        corners = np.array([[x, 0, 0], [x, y, 0], [0, y, 0], [0, 0, 0]], dtype=np.float64)
        along = np.array([[-1, 0, 0], [0, -1, 0], [1, 0, 0], [0, 1, 0]], dtype=np.float64)
        inward = np.array([[0, 1, 0], [-1, 0, 0], [0, -1, 0], [1, 0, 0]], dtype=np.float64)
        self.walls = [Wall(corners[k], along[k], inward[k], (x, y)[k % 2]) for k in range(4)]

    def free(self, place: Spot) -> bool:
        """Whether the footprint lies in the room and off every other."""
        x0, y0, x1, y1 = place.rectangle
        if x0 < GAP - 1e-9 or y0 < GAP - 1e-9 or x1 > self.size[0] - GAP + 1e-9 or y1 > self.size[1] - GAP + 1e-9:
            return False
        return not any(x0 < c + GAP and a < x1 + GAP and y0 < d + GAP and b < y1 + GAP for a, b, c, d in self.taken)

    def occupy(self, place: Spot) -> None:
        """Mark the footprint as taken."""
        self.taken.append(place.rectangle)

    def at_wall(self, size: Array, wall: Wall, s: float) -> Spot:
        """The spot with the back to ``wall``, its middle at ``s``."""
        x, y, _ = wall.point(s, GAP + float(size[1]) / 2, 0.0)
        return spot(x, y, wall.yaw, size)

    def find_at_wall(self, size: Array, rng: np.random.Generator, wall: Wall | None = None) -> tuple[Spot, Wall] | None:
        """A free spot with the back to ``wall`` (any, when None) that hides no window, door or picture."""
        half = float(size[0]) / 2
        for _ in range(_TRIES):
            chosen = wall or self.walls[rng.integers(4)]
            if chosen.length < 2 * (half + GAP):
                continue
            s = rng.uniform(half + GAP, chosen.length - half - GAP)
            if rng.random() < 0.3:  # pushed into a corner, as people do
                s = half + GAP if rng.random() < 0.5 else chosen.length - half - GAP
            place = self.at_wall(size, chosen, s)
            if chosen.free(s - half, s + half, 0.0, float(size[2])) and self.free(place):
                return place, chosen
        return None

    def find_standing(self, size: Array, rng: np.random.Generator, turns: int = 4) -> Spot | None:
        """A free spot anywhere; ``turns`` 4: parallel to the walls, 0: at any angle."""
        for _ in range(_TRIES):
            yaw = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.04) if turns else rng.uniform(0, 2 * np.pi)
            x, y = rng.uniform(0.15, 0.85, 2) * self.size[:2]
            place = spot(x, y, yaw, size)
            if self.free(place):
                return place
        return None

    def find_central(self, size: Array, rng: np.random.Generator) -> Spot | None:
        """A free spot near the middle of the room, parallel to the walls."""
        for spread in np.linspace(0.05, 0.22, _TRIES):
            yaw = rng.integers(4) * np.pi / 2
            x, y = self.size[:2] * (0.5 + rng.normal(0, spread, 2))
            place = spot(x, y, yaw, size)
            if self.free(place):
                return place
        return None


def in_front(base: Spot, base_size: Array, size: Array, gap: float, shift: float = 0.0, facing: bool = True) -> Spot:
    """The spot ``gap`` metres before the front of a piece at ``base``, ``shift`` to its right.

    ``facing`` turns the new piece's front towards the old one, else both look the same way.
    """
    reach = (float(base_size[1]) + float(size[1])) / 2 + gap
    right = np.array([np.cos(base.yaw), np.sin(base.yaw)])
    front = np.array([np.sin(base.yaw), -np.cos(base.yaw)])
    x, y = np.array([base.x, base.y]) + front * reach + right * shift
    return spot(x, y, base.yaw + (np.pi if facing else 0.0), size)


def around(base: Spot, base_size: Array, size: Array, side: int, part: float, gap: float, twist: float) -> Spot:
    """A seat facing a table at ``side`` (0 front, 1 right, 2 back, 3 left), ``part`` (-0.5 to 0.5) along."""
    turned = spot(base.x, base.y, base.yaw + side * np.pi / 2, base_size)
    across = base_size if side % 2 == 0 else base_size[[1, 0, 2]]
    place = in_front(turned, across, size, gap, shift=part * float(across[0]))
    return spot(place.x, place.y, place.yaw + twist, size)
