"""Pictures, televisions and books, made procedurally."""

from __future__ import annotations

import numpy as np

from renderer.fixtures import wall_box
from renderer.geometry import Material, Mesh, SceneBuilder, box, join, quad
from renderer.layout import FloorPlan, Wall
from renderer.textures import hsv, landscape, painting

_UP = np.array([0.0, 0.0, 1.0])


def add_pictures(scene: SceneBuilder, plan: FloorPlan, count: int, rng: np.random.Generator) -> None:
    """Up to ``count`` framed pictures where walls are free, centred at eye height."""
    for _ in range(count * 5):
        if count == 0:
            break
        wall = plan.walls[rng.integers(4)]
        width, height = rng.uniform(0.3, 1.05), rng.uniform(0.3, 0.8)
        if wall.length < width + 0.4:
            continue
        s, z = rng.uniform(0.15, wall.length - width - 0.15), rng.uniform(1.45, 1.7) - height / 2
        if not wall.free(s - 0.06, s + width + 0.06, z - 0.06, z + height + 0.06):
            continue
        scene.add(_picture(wall, s, z, width, height, rng), "picture")
        wall.taken.append((s - 0.05, s + width + 0.05, z - 0.05, z + height + 0.05))
        count -= 1


def _picture(wall: Wall, s: float, z: float, width: float, height: float, rng: np.random.Generator) -> Mesh:
    canvas, bar = painting(rng), rng.uniform(0.015, 0.05)
    if rng.random() < 0.5:  # a passepartout
        edge = int(rng.integers(6, 18))
        canvas = np.pad(canvas[edge:-edge, edge:-edge], ((edge, edge), (edge, edge), (0, 0)), constant_values=0.93)
    frame = Material.plain(hsv(rng.uniform(0, 0.15), rng.choice([0.0, 0.5]), rng.uniform(0.05, 0.9)))
    front = wall.point(s, 0.018, z)
    return join(
        [
            quad(front, wall.along * width, _UP * height, Material.image(canvas)),
            wall_box(wall, (s - bar, s), (0, 0.03), (z - bar, z + height + bar), frame),
            wall_box(wall, (s + width, s + width + bar), (0, 0.03), (z - bar, z + height + bar), frame),
            wall_box(wall, (s, s + width), (0, 0.03), (z + height, z + height + bar), frame),
            wall_box(wall, (s, s + width), (0, 0.03), (z - bar, z), frame),
        ]
    )


def television(width: float, rng: np.random.Generator, stand: bool = True) -> Mesh:
    """A flat television of ``width`` metres in a model's frame: screen towards -y, back at y = 0.03."""
    height, lift = width * 9 / 16, 0.07 if stand else 0.0
    case = Material.plain(np.full(3, rng.uniform(0.03, 0.15)))
    dark = np.full((1, 1, 3), 0.06) + rng.uniform(0, 0.03, 3)
    screen = Material.image(landscape(rng), emission=0.45) if rng.random() < 0.3 else Material.image(dark)
    rim, half = 0.02, width / 2
    parts = [
        box((-half, -0.02, lift), (half, 0.03, lift + height), case),
        quad(
            np.array([-half + rim, -0.0215, lift + rim]),
            np.array([width - 2 * rim, 0, 0]),
            _UP * (height - 2 * rim),
            screen,
        ),
    ]
    if stand:
        parts += [
            box((-0.03, -0.01, 0.015), (0.03, 0.02, lift), case),
            box((-width / 5, -0.11, 0), (width / 5, 0.11, 0.015), case),
        ]
    return join(parts)


def add_wall_television(scene: SceneBuilder, plan: FloorPlan, rng: np.random.Generator) -> None:
    """A television on a free part of a wall, if there is one."""
    width = rng.uniform(0.7, 1.3)
    for _ in range(8):
        wall = plan.walls[rng.integers(4)]
        if wall.length < width + 0.6:
            continue
        s, z = rng.uniform(0.3 + width / 2, wall.length - width / 2 - 0.3), rng.uniform(1.0, 1.25)
        if wall.free(s - width / 2 - 0.05, s + width / 2 + 0.05, z, z + width * 0.57):
            x, y, height = wall.point(s, 0.032, z)
            scene.add(television(width, rng, stand=False).placed(x, y, height, wall.yaw), "tv")
            wall.taken.append((s - width / 2 - 0.05, s + width / 2 + 0.05, z - 0.05, z + width * 0.6))
            return


def _book(
    low: tuple[float, float, float], high: tuple[float, float, float], rng: np.random.Generator, upright: bool
) -> Mesh:
    """A closed book; its spine carries a light or dark title band."""
    colour = hsv(rng.random(), rng.uniform(0.1, 0.8), rng.uniform(0.15, 0.85))
    band = np.clip(colour * rng.choice([0.5, 1.6]) + rng.uniform(0, 0.2), 0, 1)
    spine = np.tile(colour, (16, 1, 1)) * rng.uniform(0.95, 1.05, (16, 1, 1))
    first = int(rng.integers(2, 9))
    spine[first : first + int(rng.integers(2, 5))] = band
    spine = spine if upright else np.swapaxes(spine, 0, 1)
    return box(low, high, Material.image(spine))


def book_row(length: float, depth: float, clearance: float, rng: np.random.Generator) -> Mesh:
    """Upright books side by side along x from 0 to at most ``length``, spines at y = 0, standing on z = 0."""
    books: list[Mesh] = []
    x = 0.0
    typical = rng.uniform(0.6, 0.9) * min(clearance, 0.34)
    while True:
        thick = rng.uniform(0.015, 0.05)
        if x + thick > length:
            break
        tall = min(typical * rng.uniform(0.8, 1.12), clearance - 0.01)
        deep = min(depth, rng.uniform(0.13, 0.2))
        recess = rng.uniform(0, 0.015)
        books.append(_book((x, recess, 0.0), (x + thick, recess + deep, tall), rng, upright=True))
        x += thick + 0.001
        if rng.random() < 0.04:
            x += rng.uniform(0.03, 0.12)
    return join(books) if books else _book((0, 0, 0), (min(length, 0.02), 0.1, typical), rng, upright=True)


def book_pile(rng: np.random.Generator) -> Mesh:
    """One to five books that lie on each other about the origin."""
    books, z = [], 0.0
    width, depth = rng.uniform(0.2, 0.3), rng.uniform(0.14, 0.22)
    for _ in range(int(rng.integers(1, 6))):
        thick, shrink = rng.uniform(0.015, 0.045), rng.uniform(0.85, 1.0)
        half_x, half_y = width * shrink / 2, depth * shrink / 2
        book = _book((-half_x, -half_y, 0), (half_x, half_y, thick), rng, upright=False)
        books.append(book.placed(0.0, 0.0, z, float(rng.normal(0, 0.12))))
        z += thick + 0.0005
    return join(books)
