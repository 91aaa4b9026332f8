"""Do normals have length 1, and does each axis point where it should?"""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import numpy.typing as npt

from simo_merge.checking.findings import Finding, percent
from simo_merge.checking.statistics import NormalsStatistics, Orientation, Statistics

_AXES = (("x", "right"), ("y", "down"), ("z", "towards the viewer"))
_EXPECTED = "Expected x right, y down, z towards the viewer"
_CLEAR = 0.3
_FEW_VOTES = 500


def lengths(statistics: Statistics) -> list[Finding]:
    """Normals that are not of unit length, as handed out or as stored."""
    found = []
    for name, counted in statistics.labels.items():
        if not isinstance(counted, NormalsStatistics) or not counted.valid:
            continue
        if counted.lengths_off > 0.001 * counted.valid:
            share = percent(counted.lengths_off / counted.valid)
            message = f"{share} of the valid normals differ from length 1 by more than 0.01; divide by the length."
            found.append(Finding("failure", "length", message, name))
        stored = statistics.stored.get(name)
        values = np.concatenate(stored.lengths) if stored is not None and stored.lengths else np.zeros(0)
        if not len(values):
            continue
        low, middle, high = (float(value) for value in np.quantile(values, (0.05, 0.5, 0.95)))
        off = float((np.abs(values - 1) > 0.2).mean())
        message = (
            f"the stored normals have lengths {low:.2f} to {high:.2f} (5 % to 95 %, median {middle:.2f}), expected 1: "
            "they were probably decoded or averaged in another way (bytes are n = 2 x / 255 - 1, a .npy file has the "
            "components), so their directions are not to be trusted."
        )
        if not 0.9 <= middle <= 1.1:
            found.append(Finding("failure", "length", message, name))
        elif off > 0.05:
            found.append(Finding("warning", "length", message, name))
    return found


def axes(statistics: Statistics) -> list[Finding]:
    """Axes that are flipped or exchanged, against normals computed from depth."""
    found = []
    for orientation in statistics.orientations:
        seen = orientation.correlation
        if not orientation.evident.any():
            continue
        order, signs = best_axes(seen, orientation.evident)
        correlations = ", ".join(f"{axis} {seen[i, i]:+.2f}" for i, (axis, _) in enumerate(_AXES))
        against = f"compared with normals computed from {orientation.depth.name} (correlation {correlations})"
        flipped = [_AXES[i] for i in range(3) if signs[i] < 0]
        if order != (0, 1, 2):
            stored = ", ".join(f"{'-' if signs[i] < 0 else ''}{_AXES[order[i]][0]}" for i in range(3))
            message = (
                f"the axes are exchanged, {against}: where x, y, z should be there are {stored}. {_EXPECTED}; are the "
                "channels in the order BGR? Give the order under axes in dataset.yaml, or write the files again."
            )
            found.append(Finding("failure", "axes", message, orientation.normals.name))
        elif flipped:
            names = " and ".join(f"{axis} ({direction})" for axis, direction in flipped)
            verb = "axis is" if len(flipped) == 1 else "axes are"
            message = (
                f"the {names} {verb} flipped, {against}. {_EXPECTED}; say under axes in dataset.yaml where each "
                "channel points, or negate the channel."
            )
            found.append(Finding("failure", "flipped", message, orientation.normals.name))
        elif min(seen[i, i] for i in range(3) if orientation.evident[i]) < _CLEAR:
            message = f"normals hardly follow the depth, {against}; are both of the same image?"
            found.append(Finding("warning", "axes", message, orientation.normals.name))
    return found


def best_axes(
    correlation: npt.NDArray[np.float64], evident: npt.NDArray[np.bool_]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The order and signs of axes that fit computed normals best; the expected ones unless others are clearly better.

    Args:
        correlation: Of each labelled axis (rows) with each computed one (columns).
        evident: Axes that have enough surfaces; the others are not judged.

    Returns:
        For labelled x, y, z: the computed axis that it follows, and whether with (1) or against (-1) its direction.
    """
    expected = ((0, 1, 2), (1, 1, 1))
    usual = _fit(correlation, *expected)
    every = product(permutations(range(3)), product((1, -1), repeat=3))
    allowed = [
        (order, signs)
        for order, signs in every
        if all(evident[i] or (order[i] == i and signs[i] == 1) for i in range(3))
    ]
    best = max(allowed, key=lambda choice: _fit(correlation, *choice))
    return best if _fit(correlation, *best) > usual + 2 * _CLEAR else expected


def _fit(correlation: npt.NDArray[np.float64], order: tuple[int, ...], signs: tuple[int, ...]) -> float:
    return float(sum(sign * correlation[i, order[i]] for i, sign in enumerate(signs)))


def signs(statistics: Statistics) -> list[Finding]:
    """Signs of axes, from what can be visible: for sets without depth, where `axes` has nothing to compare with."""
    found = []
    for name, counted in statistics.labels.items():
        if not isinstance(counted, NormalsStatistics) or not counted.valid:
            continue
        judged = _judged(statistics.orientations, name)
        for axis, (against, fitting) in enumerate(counted.votes):
            votes = against + fitting
            if judged[axis] or votes < _FEW_VOTES or against < 0.65 * votes:
                continue
            letter, direction = _AXES[axis]
            where = ("right", "left") if axis == 0 else ("below", "above")
            message = (
                f"the {letter} ({direction}) axis is flipped: {percent(float(against / votes))} of the surfaces that "
                f"point {direction} lie {where[0]} of the middle of the image, where their backs would be seen (they "
                f"should lie {where[1]}). {_EXPECTED}; say under axes in dataset.yaml where each channel points."
            )
            found.append(Finding("failure", "flipped", message, name))
        away = 1 - counted.facing_share
        if away > 0.2 and not judged[2]:
            message = (
                f"{percent(away)} of the normals point away from the viewer, though only what faces the camera can be "
                f"seen: {'the z axis is flipped' if away > 0.6 else 'is z the third channel?'} {_EXPECTED}."
            )
            found.append(Finding("failure" if away > 0.6 else "warning", "flipped", message, name))
    return found


def _judged(orientations: list[Orientation], name: str) -> npt.NDArray[np.bool_]:
    """Which axes of a task `axes` has judged."""
    none: npt.NDArray[np.bool_] = np.zeros(3, dtype=bool)
    return next((orientation.evident for orientation in orientations if orientation.normals.name == name), none)
