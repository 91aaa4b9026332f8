"""The room itself: floor, walls, ceiling, skirting, door, windows with curtains, rugs, ceiling lamp."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from renderer.geometry import Array, Material, Mesh, SceneBuilder, box, join, quad
from renderer.layout import GAP, FloorPlan, Wall, spot
from renderer.textures import floor_texture, fractal, hsv, landscape, wall_texture, wallpaper

_OVERHANG = 0.05  # metres that floor, walls and ceiling run on past each other, so that no ray slips out
_UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, eq=False)
class Window:
    """A pane seen from inside: lower left corner, edges to the right and upwards (metres), day or night."""

    corner: Array
    edge_u: Array
    edge_v: Array
    inward: Array
    day: bool


def wall_box(
    wall: Wall,
    s: tuple[float, float],
    out: tuple[float, float],
    z: tuple[float, float],
    m: Material,
    tile: float | None = None,
) -> Mesh:
    """A box in the coordinates of a wall: along it, out of it, upwards."""
    mesh = box((s[0], -out[1], z[0]), (s[1], -out[0], z[1]), m, tile)
    x, y, z0 = wall.origin
    return mesh.placed(x, y, z0, wall.yaw)


def build_shell(scene: SceneBuilder, plan: FloorPlan, kind: str, rng: np.random.Generator) -> None:
    """Floor, ceiling, four walls (one may be of another kind) and skirting boards."""
    x, y, z = plan.size
    o = _OVERHANG
    floor, span = floor_texture(kind, rng)
    scene.add(quad((-o, -o, 0), (x + 2 * o, 0, 0), (0, y + 2 * o, 0), Material.image(floor), span), "floor")
    white = hsv(rng.uniform(0, 1), rng.uniform(0, 0.05), rng.uniform(0.85, 0.98))
    plaster = white * (1 + 0.03 * fractal(rng, 128, 128, 0.5))[..., None]
    scene.add(quad((-o, -o, z), (x + 2 * o, 0, 0), (0, y + 2 * o, 0), Material.image(plaster), 1.5), "ceiling")
    main = wall_texture(kind, rng)
    accent = wall_texture(kind, rng) if rng.random() < 0.25 else main
    other = int(rng.integers(4))
    skirting = Material.plain(hsv(rng.uniform(0.05, 0.12), rng.uniform(0, 0.5), rng.uniform(0.3, 0.97)))
    for number, wall in enumerate(plan.walls):
        texture, size = accent if number == other else main
        start = wall.origin - o * wall.along - o * _UP
        surface = Material.image(texture)
        scene.add(quad(start, wall.along * (wall.length + 2 * o), _UP * (z + 2 * o), surface, size), "wall")
        scene.add(wall_box(wall, (0, wall.length), (0, 0.015), (0, 0.08), skirting), "wall")


def add_door(scene: SceneBuilder, plan: FloorPlan, rng: np.random.Generator) -> None:
    """A closed door in its frame; the floor before it stays free."""
    wall = plan.walls[rng.integers(4)]
    width, height = rng.uniform(0.8, 0.95), rng.uniform(1.98, 2.1)
    s = rng.uniform(0.2, wall.length - width - 0.2)
    colour = hsv(rng.uniform(0.05, 0.1), rng.uniform(0, 0.6), rng.uniform(0.35, 0.97))
    leaf = Material.image(colour * (1 + 0.05 * fractal(rng, 128, 128, 1.2, stretch=8))[..., None])
    frame, brass = Material.plain(colour * rng.uniform(0.8, 1.0)), Material.plain((0.7, 0.62, 0.4))
    parts = [
        wall_box(wall, (s, s + width), (0, 0.03), (0, height), leaf),
        wall_box(wall, (s - 0.08, s), (0, 0.05), (0, height + 0.08), frame),
        wall_box(wall, (s + width, s + width + 0.08), (0, 0.05), (0, height + 0.08), frame),
        wall_box(wall, (s, s + width), (0, 0.05), (height, height + 0.08), frame),
        wall_box(wall, (s + 0.06, s + 0.18), (0.03, 0.08), (1.02, 1.05), brass),
    ]
    for z0, z1 in ((0.15, 0.85), (1.15, height - 0.15)) if rng.random() < 0.7 else ():
        parts.append(wall_box(wall, (s + 0.13, s + width - 0.13), (0.03, 0.038), (z0, z1), leaf))
    scene.add(join(parts), "wall")
    wall.taken.append((s - 0.1, s + width + 0.1, 0.0, height + 0.12))
    x, y, _ = wall.point(s + width / 2, GAP + 0.42, 0)
    plan.occupy(spot(x, y, wall.yaw, np.array([width, 0.84])))


def add_windows(scene: SceneBuilder, plan: FloorPlan, count: int, rng: np.random.Generator) -> list[Window]:
    """Up to ``count`` windows on free walls, all by day or all by night, some with curtains."""
    windows: list[Window] = []
    day = rng.random() < 0.85
    for _ in range(count * 4):
        if len(windows) == count:
            break
        wall = plan.walls[rng.integers(4)]
        width, sill = rng.uniform(0.8, 1.9), rng.uniform(0.75, 1.05)
        height = min(rng.uniform(1.0, 1.5), plan.size[2] - sill - 0.2)
        if wall.length < width + 0.9:
            continue
        s = rng.uniform(0.4, wall.length - width - 0.4)
        if not wall.free(s - 0.3, s + width + 0.3, sill - 0.1, sill + height + 0.1):
            continue
        windows.append(_window(scene, wall, s, width, sill, height, day, rng))
        wall.taken.append((s - 0.12, s + width + 0.12, sill - 0.05, sill + height + 0.12))
        if rng.random() < 0.5:
            _curtains(scene, wall, s, width, sill + height, rng)
    return windows


def _window(
    scene: SceneBuilder,
    wall: Wall,
    s: float,
    width: float,
    sill: float,
    height: float,
    day: bool,
    rng: np.random.Generator,
) -> Window:
    view = Material.image(landscape(rng, night=not day), emission=1.0 if day else 0.15)
    corner, edge_u, edge_v = wall.point(s, 0.004, sill), wall.along * width, _UP * height
    frame = Material.plain(hsv(0.08, rng.choice([0.0, 0.05, 0.5]), rng.uniform(0.35, 0.97)))
    bar, top = 0.055, sill + height
    parts = [
        quad(corner, edge_u, edge_v, view),
        wall_box(wall, (s - bar, s + width + bar), (0, 0.045), (top, top + bar), frame),
        wall_box(wall, (s - bar, s + width + bar), (0, 0.14), (sill - 0.035, sill), frame),
        wall_box(wall, (s - bar, s), (0, 0.045), (sill, top), frame),
        wall_box(wall, (s + width, s + width + bar), (0, 0.045), (sill, top), frame),
    ]
    for k in range(1, 2 if width < 1.3 else int(rng.integers(2, 4))):
        middle = s + width * k / (1 if width < 0.9 else 2 if width < 1.3 else 3)
        if middle < s + width - 0.1:
            parts.append(wall_box(wall, (middle - 0.025, middle + 0.025), (0, 0.035), (sill, top), frame))
    if rng.random() < 0.4:
        z = sill + 0.66 * height
        parts.append(wall_box(wall, (s, s + width), (0, 0.03), (z, z + 0.04), frame))
    scene.add(join(parts), "window")
    return Window(wall.point(s, 0.06, sill), edge_u, edge_v, wall.inward, day)


def _curtains(scene: SceneBuilder, wall: Wall, s: float, width: float, top: float, rng: np.random.Generator) -> None:
    """A folded curtain at either side of the window, on a rod."""
    cloth = Material.image(
        wallpaper(rng)[0]
        if rng.random() < 0.3
        else hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.4, 0.95)) * np.ones((1, 1, 3))
    )
    rod = top + 0.1
    bottom = 0.05 if rng.random() < 0.6 else top - rng.uniform(1.1, 1.4)
    reach = rng.uniform(0.2, 0.32)
    folds = np.linspace(0, 1, 17)
    for start in (s - 0.18, s + width + 0.18 - reach):
        if start < 0.01 or start + reach > wall.length - 0.01:
            continue
        depth = 0.085 + 0.025 * np.sin(folds * np.pi * 8 + rng.uniform(0, 6))
        foot = [wall.point(start + f * reach, d, bottom) for f, d in zip(folds, depth, strict=True)]
        rise = _UP * (rod - bottom)
        scene.add(
            join([quad(a, b - a, rise, cloth, 0.5) for a, b in pairwise(foot)]),
            "window",
        )
        wall.taken.append((start - 0.02, start + reach + 0.02, max(bottom, 0.3), rod + 0.05))
    span = max(0.0, s - 0.25), min(wall.length, s + width + 0.25)
    pole = Material.plain(hsv(0.08, 0.3, rng.uniform(0.15, 0.8)))
    scene.add(wall_box(wall, span, (0.075, 0.095), (rod, rod + 0.02), pole), "window")


def add_rug(scene: SceneBuilder, plan: FloorPlan, centre: tuple[float, float] | None, rng: np.random.Generator) -> None:
    """A rug of 8 mm under the furniture, labelled as floor."""
    size = rng.uniform((1.2, 0.9), (2.6, 1.8))
    size = np.minimum(size, plan.size[:2] - 0.4)[[0, 1] if rng.random() < 0.5 else [1, 0]]
    size = np.minimum(size, plan.size[:2] - 0.4)
    middle = np.array(centre) if centre else plan.size[:2] * rng.uniform(0.35, 0.65, 2)
    middle = np.clip(middle, size / 2 + 0.1, plan.size[:2] - size / 2 - 0.1)
    ground = wallpaper(rng)[0] if rng.random() < 0.6 else rng.uniform(0.2, 0.8, (4, 4, 3)).repeat(24, 0).repeat(24, 1)
    if rng.random() < 0.6:
        edge = max(2, len(ground) // 14)
        ground = ground.copy()
        border = hsv(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.8))
        ground[:edge], ground[-edge:], ground[:, :edge], ground[:, -edge:] = border, border, border, border
    low, high = (*(middle - size / 2), 0.0005), (*(middle + size / 2), 0.008)
    scene.add(
        box(
            low,
            high,
            Material.image(ground * (1 + 0.1 * fractal(rng, ground.shape[0], ground.shape[1], 0.4))[..., None]),
        ),
        "floor",
    )


def add_beam_lamp(scene: SceneBuilder, plan: FloorPlan, item: int, rng: np.random.Generator) -> Array:
    """A flat lamp under the ceiling, for rooms without a hanging one; returns where its light comes from."""
    x, y = plan.size[:2] * rng.uniform(0.4, 0.6, 2)
    half, height = rng.uniform(0.13, 0.22), rng.uniform(0.06, 0.1)
    z = float(plan.size[2])
    shade = replace(Material.plain((0.95, 0.93, 0.88)), emission=0.8)
    scene.add(box((x - half, y - half, z - height), (x + half, y + half, z - 0.001), shade), "objects", item)
    return np.array([x, y, z - height - 0.12])
