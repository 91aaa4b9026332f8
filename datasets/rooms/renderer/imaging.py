"""The colour picture: super-sampled radiance, then exposure, vignette, noise and sRGB."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from renderer.camera import Camera
from renderer.geometry import Array, Scene, to_srgb
from renderer.lighting import Illumination, Lights, smooth
from renderer.tracing import Tracer

SUBPIXELS = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
SHADOW_RAYS, BOUNCE_RAYS = 3, 2  # a light and sub-pixel; a sub-pixel
PANE_BRIGHTNESS = (2.2, 5.0)  # radiance of a white pane over the mean radiance of the room
CONTRAST = (0.72, 0.9)  # exponent on luminance about its level, as a camera's tone curve lifts shadows
DARKEST, FLATTEST = 38.0, 17.0  # least mean and deviation of an accepted picture, in sRGB steps of 1/255


def radiance(scene: Scene, tracer: Tracer, lights: Lights, camera: Camera, rng: np.random.Generator) -> Array:
    """Linear radiance (H, W, 3), the mean of 2 x 2 rays a pixel; light is smoothed on the finer raster."""
    fine = camera.resized(2 * camera.width, 2 * camera.height)
    rays = fine.rays().reshape(-1, 3)
    hits = tracer.first(np.broadcast_to(camera.position, rays.shape), rays)
    albedo, emission = scene.material_of(hits.face, hits.weights)
    light = Illumination(scene, tracer, lights, rng)
    raster = (fine.height, fine.width, 3)
    points, normals = hits.point.reshape(raster), hits.normal.reshape(raster)
    direct = smooth(light.direct(hits.point, hits.normal, SHADOW_RAYS).reshape(raster), points, normals, 3)
    bounced = np.mean([light.indirect(hits.point, hits.normal) for _ in range(BOUNCE_RAYS)], axis=0)
    indirect = smooth(bounced.reshape(raster), points, normals, 5)
    albedo, emission = albedo.reshape(raster), emission.reshape(*raster[:2], 1)
    colour = albedo * (direct + indirect)
    # Panes and lamp shades are drawn a little brighter than the room, not their true many stops above it.
    room = colour[emission[..., 0] <= 0].mean() if (emission <= 0).any() else 1.0
    colour = np.where(emission > 0, albedo * emission * room * rng.uniform(*PANE_BRIGHTNESS), colour)
    return colour.reshape(camera.height, 2, camera.width, 2, 3).mean(axis=(1, 3))


def develop(colour: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Linear radiance (H, W, 3) -> sRGB: exposure, tone curve, white balance, vignette, shoulder, noise."""
    luminance = colour @ np.array([0.2126, 0.7152, 0.0722])
    level = np.exp(np.mean(np.log(np.maximum(luminance, 1e-5))))
    exposure = 0.19 * 2.0 ** rng.normal(0.0, 0.45) / level
    cast = np.median(colour.reshape(-1, 3), axis=0)
    balance = (cast.mean() / np.maximum(cast, 1e-6)) ** rng.uniform(0.2, 0.6)
    toned = (np.maximum(luminance, 1e-5) / level) ** (rng.uniform(*CONTRAST) - 1)
    exposed = colour * exposure * np.clip(balance, 0.6, 1.7) * toned[..., None]
    exposed *= _vignette(colour.shape[0], colour.shape[1], rng.uniform(0.0, 0.3))[..., None]
    bent = np.where(exposed > 0.7, 0.7 + 0.3 * np.tanh((exposed - 0.7) / 0.3), exposed)
    read, shot = rng.uniform(0.0005, 0.0025), rng.uniform(0.0001, 0.0006)
    noisy = bent + rng.standard_normal(bent.shape) * np.sqrt(read**2 + shot * np.maximum(bent, 0))
    return np.round(to_srgb(noisy) * 255).astype(np.uint8)


def _vignette(height: int, width: int, strength: float) -> Array:
    """Fall-off (H, W) to ``1 - strength`` in the corners."""
    y, x = np.mgrid[:height, :width]
    radius = np.hypot((x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5) / np.sqrt(0.5)
    return 1 - strength * radius**2


def acceptable(picture: NDArray[np.uint8]) -> bool:
    """Whether the picture is neither too dark nor too flat."""
    grey = picture.mean(axis=-1)
    return bool(grey.mean() > DARKEST and grey.std() > FLATTEST)


def encode_depth(depth: Array) -> NDArray[np.uint16]:
    """Metres -> millimetres, 0 kept for missing."""
    return np.clip(np.round(depth * 1000), 1, 65535).astype(np.uint16)


def encode_normals(normals: Array) -> NDArray[np.uint8]:
    """Unit vectors -> uint8, n = 2 x / 255 - 1."""
    return np.round((np.clip(normals, -1, 1) + 1) * 127.5).astype(np.uint8)
