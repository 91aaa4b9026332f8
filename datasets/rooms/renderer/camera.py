"""The pinhole camera and the search for a view that shows the room."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from renderer.geometry import CLASS_ID, Array, Scene
from renderer.tracing import Tracer

FOV_DEG = (55.0, 70.0)
HEIGHT_M = (1.1, 1.8)
PITCH_DEG = (-28.0, 14.0)
ROLL_SD_DEG = 2.0
NEAREST_M = 0.55
LARGE_IN_VIEW = 3
_CANDIDATES = 60
_PROBE = (42, 32)  # rays of the coarse look through a candidate


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera; ``axes`` rows are right, down and forward in room coordinates; sizes in pixels."""

    position: Array
    axes: Array
    focal: float
    width: int
    height: int
    pitch_deg: float
    roll_deg: float

    @property
    def fov_deg(self) -> float:
        """Horizontal field of view."""
        return float(np.degrees(2 * np.arctan(self.width / 2 / self.focal)))

    def rays(self, offsets: tuple[tuple[float, float], ...] = ((0.5, 0.5),)) -> Array:
        """Directions (H, W, k, 3) through the points ``offsets`` (u, v) within every pixel.

        Their forward component is 1: the ray parameter of a hit is its z-depth.
        """
        u, v = np.meshgrid(np.arange(self.width), np.arange(self.height))
        du, dv = np.array(offsets).T
        x = (u[..., None] + du - self.width / 2) / self.focal
        y = (v[..., None] + dv - self.height / 2) / self.focal
        return np.stack([x, y, np.ones_like(x)], axis=-1) @ self.axes

    def resized(self, width: int, height: int) -> Camera:
        """The same view on another raster (same horizontal field of view)."""
        return Camera(
            self.position,
            self.axes,
            self.focal * width / self.width,
            width,
            height,
            self.pitch_deg,
            self.roll_deg,
        )


def look(position: Array, yaw: float, pitch_deg: float, roll_deg: float, focal: float, size: tuple[int, int]) -> Camera:
    """A camera at ``position`` that looks along ``yaw`` (radians from +x), pitch up, roll clockwise."""
    pitch, roll = np.radians(pitch_deg), np.radians(roll_deg)
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    level = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    plumb = np.cross(forward, level)
    right = np.cos(roll) * level + np.sin(roll) * plumb
    axes = np.stack([right, np.cross(forward, right), forward])
    return Camera(np.asarray(position, dtype=np.float64), axes, focal, *size, pitch_deg, roll_deg)


def find_view(
    scene: Scene,
    tracer: Tracer,
    room: Array,
    large: dict[int, Array],
    size: tuple[int, int],
    rng: np.random.Generator,
) -> Camera | None:
    """The best of the candidate views that pass, or None; ``large`` maps item numbers to their centres."""
    targets = list(large.values())
    focal = size[0] / 2 / np.tan(np.radians(rng.uniform(*FOV_DEG)) / 2)
    best: tuple[float, Camera | None] = (-np.inf, None)
    passed = 0
    for _ in range(_CANDIDATES):
        place = np.append(rng.uniform(0.25, room[:2] - 0.25), rng.uniform(HEIGHT_M[0], min(HEIGHT_M[1], room[2] - 0.5)))
        target = targets[rng.integers(len(targets))] + rng.normal(0, 0.5, 3)
        ahead = target - place
        aim = np.degrees(np.arctan2(ahead[2], np.hypot(*ahead[:2])))
        pitch = float(0.6 * aim + rng.normal(0, 5.0))
        if not PITCH_DEG[0] <= pitch <= PITCH_DEG[1]:
            continue
        roll = float(np.clip(rng.normal(0, ROLL_SD_DEG), -6, 6))
        camera = look(place, np.arctan2(ahead[1], ahead[0]), pitch, roll, focal, size)
        score = _score(camera, scene, tracer, large)
        if score is not None:
            passed += 1
            if score > best[0]:
                best = score, camera
        if passed >= 4:
            break
    return best[1]


def _score(camera: Camera, scene: Scene, tracer: Tracer, large: dict[int, Array]) -> float | None:
    """Variety of what the view shows; None where something is near the lens or too little is seen."""
    probe = camera.resized(_PROBE[0], max(8, round(_PROBE[0] * camera.height / camera.width)))
    rays = probe.rays().reshape(-1, 3)
    hits = tracer.first(np.broadcast_to(camera.position, rays.shape), rays)
    if hits.t.min() < NEAREST_M or np.median(hits.t) < 1.3:
        return None
    items, counts = np.unique(scene.items[hits.face], return_counts=True)
    share = counts / len(rays)
    in_view = [s for item, s in zip(items, share, strict=True) if item in large and s > 0.008]
    if len(in_view) < LARGE_IN_VIEW or max(in_view) > 0.45:
        return None
    shares = np.bincount(scene.classes[hits.face], minlength=14) / len(rays)
    if shares[CLASS_ID["wall"]] > 0.7:
        return None
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum() + 0.1 * len(in_view))


def labels(camera: Camera, scene: Scene, tracer: Tracer) -> tuple[NDArray[np.uint8], Array, Array]:
    """Class ids (H, W), z-depth in metres (H, W), normals (H, W, 3) from the ray through each pixel's centre.

    Normals' axes: +x right, +y down, +z towards the viewer; each is turned to the viewer.
    """
    rays = camera.rays().reshape(-1, 3)
    hits = tracer.first(np.broadcast_to(camera.position, rays.shape), rays)
    shape = camera.height, camera.width
    normals = (hits.normal @ camera.axes.T) * np.array([1.0, 1.0, -1.0])
    return scene.classes[hits.face].reshape(shape), hits.t.reshape(shape), normals.reshape(*shape, 3)
