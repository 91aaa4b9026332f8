"""One room from its seed: furnish, look, light, and draw again until the checks pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from renderer.camera import Camera, find_view, labels
from renderer.catalogue import Catalogue, RenderError
from renderer.decor import add_pictures, add_wall_television
from renderer.fixtures import Window, add_beam_lamp, add_door, add_rug, add_windows, build_shell
from renderer.furnishing import Furnisher
from renderer.geometry import Array, Scene, SceneBuilder
from renderer.imaging import acceptable, develop, radiance
from renderer.layout import FloorPlan, spot
from renderer.lighting import draw_lights
from renderer.recipes import KINDS, LARGE
from renderer.tracing import RayEscaped, Tracer

LARGE_NEEDED = 5
MOST_SUBSEEDS = 60


@dataclass(frozen=True, eq=False)
class BuiltRoom:
    """A furnished room before any camera stands in it."""

    scene: Scene
    size: Array
    kind: str
    windows: list[Window]
    lamp_at: Array
    large: dict[int, Array]


@dataclass(frozen=True, eq=False)
class RenderedRoom:
    """Picture (H, W, 3) sRGB, class ids (H, W), z-depth in metres (H, W), normals (H, W, 3), and facts."""

    picture: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    depth: Array
    normals: Array
    camera: Camera
    room: BuiltRoom
    subseed: int


def build_room(catalogue: Catalogue, rng: np.random.Generator) -> BuiltRoom:
    """A room of random size and kind with everything in it."""
    while True:
        size = rng.uniform((3.0, 3.0, 2.4), (6.6, 6.6, 3.0))
        if size[0] * size[1] <= 34.0:
            break
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    scene, plan = SceneBuilder(), FloorPlan(size)
    build_shell(scene, plan, kind, rng)
    add_door(scene, plan, rng)
    windows = add_windows(scene, plan, int(rng.choice(3, p=(0.25, 0.45, 0.3))), rng)
    furnisher = Furnisher(scene, plan, catalogue, rng)
    furnisher.furnish(kind)
    if rng.random() < {"living": 0.5, "bed": 0.35, "studio": 0.35}.get(kind, 0.2):
        add_wall_television(scene, plan, rng)
    add_pictures(scene, plan, int(rng.integers(2, 8)), rng)
    if kind != "kitchen" and rng.random() < 0.45:
        around = [i.place for i in furnisher.items if i.model.role in ("coffee", "table", "bed")]
        add_rug(scene, plan, (around[0].x, around[0].y) if around else None, rng)
    lamp_at = _hang_lamp(furnisher, catalogue, rng)
    large = {item.number: item.centre for item in furnisher.items if item.model.role in LARGE}
    return BuiltRoom(scene.build(), size, kind, windows, lamp_at, large)


def _hang_lamp(furnisher: Furnisher, catalogue: Catalogue, rng: np.random.Generator) -> Array:
    """A hanging model or a flat lamp near the middle of the ceiling; returns where its light comes from."""
    plan, z = furnisher.plan, float(furnisher.plan.size[2])
    model = catalogue.draw("hanglamp", rng) if rng.random() < 0.5 else None
    if model is None or z - model.size[2] < 1.9:
        return add_beam_lamp(furnisher.scene, plan, len(furnisher.items) + 1, rng)
    x, y = plan.size[:2] * rng.uniform(0.42, 0.58, 2)
    foot = z - float(model.size[2]) - 0.002
    furnisher.put(model, spot(x, y, 0.0, model.size), z=foot)
    return np.array([x, y, foot - 0.16])


def render_once(
    catalogue: Catalogue, size: tuple[int, int], rng: np.random.Generator, subseed: int = 0
) -> RenderedRoom | None:
    """Draw and render one room of ``size`` (width, height) pixels; None when it fails a check."""
    room = build_room(catalogue, rng)
    if len(room.large) < LARGE_NEEDED:
        return None
    tracer = Tracer(room.scene)
    try:
        camera = find_view(room.scene, tracer, room.size, room.large, size, rng)
        if camera is None:
            return None
        classes, depth, normals = labels(camera, room.scene, tracer)
        lights = draw_lights(room.lamp_at, room.windows, rng)
        picture = develop(radiance(room.scene, tracer, lights, camera, rng), rng)
    except RayEscaped:
        return None
    if not acceptable(picture):
        return None
    return RenderedRoom(picture, classes, depth, normals, camera, room, subseed)


def render_room(catalogue: Catalogue, size: tuple[int, int], seed: int, index: int) -> RenderedRoom:
    """Room ``index`` of ``seed``, drawn from ``default_rng([seed, index, sub-seed])`` with the first to pass.

    Raises:
        RenderError: no sub-seed passes (a models table with too little furniture in it).
    """
    for subseed in range(MOST_SUBSEEDS):
        rendered = render_once(catalogue, size, np.random.default_rng([seed, index, subseed]), subseed)
        if rendered is not None:
            return rendered
    raise RenderError(
        f"room {index:05d}: none of {MOST_SUBSEEDS} sub-seeds gives a room with {LARGE_NEEDED} large pieces "
        "and a view; does the models table hold beds, sofas, tables, chairs and shelves?"
    )
