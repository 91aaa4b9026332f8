"""Surface normals from a depth map: a plane is fitted to what each pixel's window shows of its own surface.

Seen through a pinhole, the inverse depth q = 1 / z of a plane is affine in the pixel's direction (u, v), u = (x - cx) /
fx, v = (y - cy) / fy:

    q = a u + b v + c,  with the plane {P : (a, b, c) . P = 1} in x right, y down, z away from the viewer.

(a, b, c) is fitted by least squares, and the normal that faces the camera is -(a, b, c) / |(a, b, c)|. The Kinect
measures disparity, which is affine in q, so its noise is even in q and the fit is the right one for it. What lies in
front of or behind the centre by more than JUMP belongs to another surface and is left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FULL = (480, 640)
FX, FY = 518.85790117450188, 519.46961112127485
CX, CY = 325.58244941119034, 253.73616633400465
"""Colour camera of NYUv2 at its full size, pixels counted from 1: `camera_params.m` of the official toolbox."""
WINDOW = 11
"""Pixels a side."""
JUMP = 0.05
"""Relative difference of inverse depth that is another surface."""
ENOUGH = 1 / 3
"""Share of the window that must show the surface."""
_STRIP = 16
METHOD = (
    f"computed from depth: plane fitted by least squares to the inverse depth of the pixels of an {WINDOW} x {WINDOW} "
    f"window that are within {JUMP:.0%} of its centre, through the colour camera of the official toolbox; valid where "
    f"at least {ENOUGH:.0%} of the window are left"
)


def plane_normals(depth: npt.NDArray[Any], known: npt.NDArray[np.bool_]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Unit normals `(H, W, 3)`, x right, y down, z towards the viewer, and the `(H, W)` mask of the valid ones.

    Args:
        depth: Metres along the optical axis, (H, W): a frame of NYUv2, whole, at any size.
        known: Where it was measured; the rest is not looked at.
    """
    known = known & (depth > 0)
    q = np.where(known, 1.0 / np.where(known, depth, 1.0), 0.0)
    u, v = _directions(depth.shape)
    moments = _moments(q.astype(np.float32)).astype(np.float64)
    # In steps of pixels from the centre, q = q0 + a' i + b' j, and q is counted from the centre's.
    count, ii, ij, jj, iq, jq, i, j, dq = moments
    share = 1.0 / np.maximum(count, 1)
    i, j, dq = i * share, j * share, dq * share
    ii, ij, jj = ii * share - i * i, ij * share - i * j, jj * share - j * j
    iq, jq = iq * share - i * dq, jq * share - j * dq
    determinant = ii * jj - ij**2
    valid = (count >= ENOUGH * WINDOW**2) & (determinant > 0.25)  # it must extend in both directions
    determinant = np.where(valid, determinant, 1.0)
    a, b = (iq * jj - jq * ij) / determinant, (jq * ii - iq * ij) / determinant
    centre = q + dq - a * i - b * j
    a, b = a / (u[1] - u[0]), b / (v[1] - v[0])  # from steps of pixels to directions
    c = centre - a * u[None, :] - b * v[:, None]
    normals = np.stack([-a, -b, c], axis=-1)  # z is turned towards the viewer
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.where(valid[..., None], normals / np.maximum(length, 1e-12), 0.0), valid


def _moments(q: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sums over the part of each pixel's window that shows its surface, (9, H, W).

    They are those of 1, i i, i j, j j, i d, j d, i, j and d, where i and j count columns and rows from the centre and d
    is what q has more than at the centre. Unknown pixels, where q is 0, are on no surface.
    """
    reach = WINDOW // 2
    padded = np.pad(q, reach)
    strips = range(0, q.shape[0], _STRIP)  # small enough to stay in the processor's cache
    return np.concatenate([_strip(q[top : top + _STRIP], padded[top : top + _STRIP + 2 * reach]) for top in strips], 1)


def _strip(q: npt.NDArray[np.float32], padded: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The moments of some rows, which are given with what lies around them, too."""
    height, width = q.shape
    reach = WINDOW // 2
    limit = JUMP * q
    sums = np.zeros((9, height, width), np.float32)
    rows = np.zeros((5, height, width), np.float32)  # of one row of the window: 1, i, i i, d, i d
    d, w = np.empty_like(q), np.empty_like(q)
    for j in range(-reach, reach + 1):
        rows[:] = 0
        for i in range(-reach, reach + 1):
            np.subtract(padded[reach + j : reach + j + height, reach + i : reach + i + width], q, out=d)
            np.abs(d, out=w)
            np.less(w, limit, out=w)
            d *= w
            rows[0] += w
            rows[3] += d
            if i:
                w *= i
                d *= i
                rows[1] += w
                rows[4] += d
                w *= i
                rows[2] += w
        one, by_i, by_ii, by_d, by_id = rows
        for total, term in zip(
            sums, (one, by_ii, j * by_i, j * j * one, by_id, j * by_d, by_i, j * one, by_d), strict=True
        ):
            total += term
    return sums


def _directions(shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """u of each column and v of each row."""
    height, width = shape
    columns = (np.arange(width) + 0.5) * FULL[1] / width + 0.5  # counted from 1, at full size
    rows = (np.arange(height) + 0.5) * FULL[0] / height + 0.5
    return (columns - CX) / FX, (rows - CY) / FY
