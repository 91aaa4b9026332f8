"""What belongs in each kind of room: data for :mod:`renderer.furnishing`."""

from __future__ import annotations

from typing import NamedTuple

KINDS = {"bed": 0.255, "living": 0.255, "dining": 0.14, "kitchen": 0.12, "office": 0.115, "studio": 0.115}

# Roles that count as large: a room needs five of them, a view three.
LARGE = frozenset(
    [
        "armchair",
        "bed",
        "chair",
        "coffee",
        "crib",
        "desk",
        "dresser",
        "fridge",
        "kitlow",
        "kitup",
        "shelf",
        "sofa",
        "stool",
        "table",
        "tvstand",
        "wardrobe",
    ]
)

# At most how many small things stand on top of a piece, by its role.
ON_TOP = {
    "table": 3,
    "coffee": 3,
    "desk": 4,
    "dresser": 3,
    "nightstand": 2,
    "shelf": 1,
    "kitlow": 2,
    "tvstand": 1,
    "wardrobe": 1,
    "fridge": 1,
}


class Wish(NamedTuple):
    """A role, how it stands, at most how many, and the chance of each.

    ``how`` is wall or free, or names a group that the role leads: bed (with night stands), sofa (with a
    coffee table), table and desk (with chairs), tv (with a television), kitchen (a row with upper units).
    """

    role: str
    how: str
    most: int
    chance: float


RECIPES: dict[str, tuple[Wish, ...]] = {
    "bed": (
        Wish("bed", "bed", 1, 1.0),
        Wish("crib", "wall", 1, 0.08),
        Wish("wardrobe", "wall", 1, 0.75),
        Wish("dresser", "wall", 2, 0.6),
        Wish("desk", "desk", 1, 0.5),
        Wish("shelf", "wall", 2, 0.45),
        Wish("armchair", "free", 1, 0.4),
        Wish("chair", "free", 1, 0.3),
        Wish("tvstand", "tv", 1, 0.25),
        Wish("floorlamp", "wall", 1, 0.25),
        Wish("floorobj", "wall", 4, 0.5),
    ),
    "living": (
        Wish("sofa", "sofa", 1, 1.0),
        Wish("tvstand", "tv", 1, 0.6),
        Wish("sofa", "wall", 1, 0.4),
        Wish("armchair", "free", 2, 0.7),
        Wish("shelf", "wall", 2, 0.65),
        Wish("dresser", "wall", 2, 0.6),
        Wish("table", "table", 1, 0.3),
        Wish("chair", "free", 1, 0.4),
        Wish("floorlamp", "wall", 1, 0.4),
        Wish("floorobj", "wall", 4, 0.5),
    ),
    "dining": (
        Wish("table", "table", 1, 1.0),
        Wish("dresser", "wall", 2, 0.7),
        Wish("shelf", "wall", 2, 0.6),
        Wish("armchair", "free", 2, 0.5),
        Wish("sofa", "wall", 1, 0.2),
        Wish("floorlamp", "wall", 1, 0.3),
        Wish("floorobj", "wall", 3, 0.5),
    ),
    "kitchen": (
        Wish("kitlow", "kitchen", 5, 1.0),
        Wish("fridge", "wall", 1, 0.8),
        Wish("table", "table", 1, 0.85),
        Wish("stool", "free", 2, 0.5),
        Wish("shelf", "wall", 1, 0.4),
        Wish("floorobj", "wall", 2, 0.5),
    ),
    "office": (
        Wish("desk", "desk", 2, 0.95),
        Wish("shelf", "wall", 3, 0.7),
        Wish("dresser", "wall", 2, 0.55),
        Wish("table", "table", 1, 0.35),
        Wish("armchair", "free", 2, 0.5),
        Wish("sofa", "wall", 1, 0.25),
        Wish("chair", "free", 1, 0.5),
        Wish("floorlamp", "wall", 1, 0.3),
        Wish("floorobj", "wall", 3, 0.5),
    ),
    "studio": (
        Wish("bed", "bed", 1, 0.9),
        Wish("kitlow", "kitchen", 3, 0.6),
        Wish("sofa", "sofa", 1, 0.6),
        Wish("table", "table", 1, 0.6),
        Wish("desk", "desk", 1, 0.5),
        Wish("wardrobe", "wall", 1, 0.5),
        Wish("shelf", "wall", 2, 0.5),
        Wish("tvstand", "tv", 1, 0.35),
        Wish("armchair", "free", 1, 0.5),
        Wish("floorobj", "wall", 4, 0.5),
    ),
}
