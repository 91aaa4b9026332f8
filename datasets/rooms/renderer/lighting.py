"""Light in a room: a ceiling lamp, windows and the sun through them, one bounce between surfaces."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from renderer.fixtures import Window
from renderer.geometry import Array, Scene
from renderer.tracing import OFFSET, Tracer

FURTHER_BOUNCES = 1.6  # factor on the one traced bounce, for those after it
_LAMP_RADIUS = 0.12
_SUN_SPREAD = 0.012  # radians; the true sun's 0.005 is finer than the filter can keep


@dataclass(frozen=True, eq=False)
class Lamp:
    """A glowing ball at ``position``; ``power`` (3,) is its radiant intensity, linear RGB."""

    position: Array
    power: Array


@dataclass(frozen=True, eq=False)
class Sun:
    """Parallel light from ``towards`` (unit vector); ``power`` (3,) falls on a surface that faces it."""

    towards: Array
    power: Array


@dataclass(frozen=True, eq=False)
class Lights:
    """All lights of a room; ``sky`` (3,) is the radiance of a day window."""

    lamp: Lamp | None = None
    windows: tuple[Window, ...] = ()
    sky: Array = field(default_factory=lambda: np.ones(3))
    sun: Sun | None = None


def draw_lights(lamp_at: Array, windows: list[Window], rng: np.random.Generator) -> Lights:
    """Lamp, sky and sun; the lamp burns at night and in windowless rooms, else about half of the time."""
    day = tuple(window for window in windows if window.day)
    warm = np.array([1.0, rng.uniform(0.72, 0.97), rng.uniform(0.45, 0.92)])
    lit = not day or rng.random() < 0.55
    lamp = Lamp(lamp_at, warm * rng.uniform(2.5, 6.0)) if lit else None
    sky = np.array([rng.uniform(0.75, 1.0), rng.uniform(0.87, 1.0), 1.0]) * rng.uniform(2.0, 7.0)
    sun = None
    if day and rng.random() < 0.45:
        inward = day[rng.integers(len(day))].inward
        azimuth = np.arctan2(-inward[1], -inward[0]) + rng.uniform(-1.0, 1.0)
        height = rng.uniform(0.25, 0.95)
        towards = np.array([np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)])
        sun = Sun(towards, np.array([1.0, 0.9, 0.74]) * rng.uniform(4.0, 11.0))
    return Lights(lamp, day, sky, sun)


class Illumination:
    """Irradiance at points of a scene over pi: times the albedo, it is the radiance of a matt surface."""

    def __init__(self, scene: Scene, tracer: Tracer, lights: Lights, rng: np.random.Generator) -> None:
        self._scene, self._tracer, self._lights, self._rng = scene, tracer, lights, rng

    def direct(self, points: Array, normals: Array, samples: int) -> Array:
        """Light straight from lamp, windows and sun, (n, 3), with ``samples`` shadow rays a light."""
        start = points + OFFSET * normals
        total = np.zeros_like(points)
        for _ in range(samples):
            if self._lights.lamp is not None:
                total += self._from_lamp(self._lights.lamp, start, normals)
            for window in self._lights.windows:
                total += self._from_window(window, start, normals)
            if self._lights.sun is not None:
                total += self._from_sun(self._lights.sun, start, normals)
        return total / (samples * np.pi)

    def indirect(self, points: Array, normals: Array) -> Array:
        """Light by way of one other surface, (n, 3), one ray a point, cosine-weighted over the hemisphere."""
        start = points + OFFSET * normals
        hits = self._tracer.first(start, self._hemisphere(normals))
        albedo, emission = self._scene.material_of(hits.face, hits.weights)
        # A glowing pane or lamp counted here would be counted twice: ``direct`` samples it already.
        albedo[emission > 0] = 0.3
        return FURTHER_BOUNCES * albedo * self.direct(hits.point, hits.normal, 1)

    def _from_lamp(self, lamp: Lamp, start: Array, normals: Array) -> Array:
        target = lamp.position + self._ball(len(start)) * _LAMP_RADIUS
        way = target - start
        square = np.maximum(np.einsum("nc,nc->n", way, way), 0.09)
        cosine = np.einsum("nc,nc->n", way, normals) / np.sqrt(square)
        return self._arriving(start, target, cosine / square)[:, None] * lamp.power

    def _from_window(self, window: Window, start: Array, normals: Array) -> Array:
        a, b = self._rng.random((2, len(start), 1))
        target = window.corner + a * window.edge_u + b * window.edge_v
        way = target - start
        square = np.maximum(np.einsum("nc,nc->n", way, way), 0.04)
        facing = np.maximum(-(way @ window.inward), 0.0)
        area = np.linalg.norm(window.edge_u) * np.linalg.norm(window.edge_v)
        factor = np.einsum("nc,nc->n", way, normals) * facing / square**2 * area
        return self._arriving(start, target, factor)[:, None] * self._lights.sky

    def _from_sun(self, sun: Sun, start: Array, normals: Array) -> Array:
        towards = sun.towards + _SUN_SPREAD * self._ball(len(start))
        cosine = np.einsum("nc,nc->n", normals, towards)
        total = np.zeros(len(start))
        for window in self._lights.windows:
            slope = towards @ window.inward
            t = ((window.corner - start) @ window.inward) / np.where(slope < -1e-6, slope, -1e-6)
            target = start + t[:, None] * towards
            local = target - window.corner
            u = (local @ window.edge_u) / (window.edge_u @ window.edge_u)
            v = (local @ window.edge_v) / (window.edge_v @ window.edge_v)
            through = (slope < -1e-6) & (t > 0) & (u > 0) & (u < 1) & (v > 0) & (v < 1)
            total += self._arriving(start, target, np.where(through, cosine, 0.0))
        return total[:, None] * sun.power

    def _arriving(self, start: Array, target: Array, factor: Array) -> Array:
        """``factor`` where it is positive and the way is clear, else 0."""
        rows = np.flatnonzero(factor > 0)
        arriving = np.zeros(len(start))
        if len(rows):
            arriving[rows] = np.where(self._tracer.clear(start[rows], target[rows]), factor[rows], 0.0)
        return arriving

    def _ball(self, count: int) -> Array:
        """Points spread evenly over the unit sphere."""
        z, turn = self._rng.uniform(-1, 1, count), self._rng.uniform(0, 2 * np.pi, count)
        radius = np.sqrt(1 - z * z)
        return np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)

    def _hemisphere(self, normals: Array) -> Array:
        """Directions about the normals with density cos / pi: the normal plus a point of the unit sphere."""
        directions = normals + self._ball(len(normals)) * (1 - 1e-6)
        return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def smooth(light: Array, points: Array, normals: Array, levels: int) -> Array:
    """Edge-aware filter of irradiance (H, W, 3): an a-trous wavelet of 3 x 3 taps, steps 1, 2, 4, ...

    A neighbour counts by how alike its normal is and how near it lies to the tangent plane of the pixel
    (after Dammertz et al., "Edge-avoiding a-trous wavelet transform", HPG 2010). Albedo is not touched.
    """
    current, place, facing = (np.ascontiguousarray(a, dtype=np.float32) for a in (light, points, normals))
    height, width = current.shape[:2]
    taps = [(dy, dx, 2.0 ** -(abs(dy) + abs(dx))) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    for level in range(levels):
        step = 2**level
        total, weight = np.zeros_like(current), np.zeros((height, width), dtype=np.float32)
        for dy, dx, kernel in taps:
            here = _window(height, dy * step), _window(width, dx * step)
            there = _window(height, -dy * step), _window(width, -dx * step)
            alike = np.einsum("ijc,ijc->ij", facing[here], facing[there])
            off = np.abs(np.einsum("ijc,ijc->ij", facing[here], place[here] - place[there]))
            near = kernel * np.clip(alike, 0, 1) ** 12 * np.maximum(1 - off / 0.04, 0)
            total[here] += near[..., None] * current[there]
            weight[here] += near
        current = total / np.maximum(weight, 1e-6)[..., None]
    return current.astype(np.float64)


def _window(length: int, shift: int) -> slice:
    """The rows that still have a neighbour ``-shift`` away."""
    return slice(max(shift, 0), length + min(shift, 0))
