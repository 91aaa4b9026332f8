"""Plain boxes that stand in for furniture models."""

from __future__ import annotations

import numpy as np

from renderer.catalogue import Model
from renderer.geometry import Material, box

_BOXES: dict[str, tuple[str, tuple[float, float, float]]] = {
    "armchair": ("chair", (0.8, 0.8, 0.8)),
    "bed": ("bed", (1.6, 2.05, 0.6)),
    "chair": ("chair", (0.45, 0.5, 0.9)),
    "coffee": ("table", (1.1, 0.6, 0.42)),
    "crib": ("bed", (0.7, 1.3, 0.9)),
    "desk": ("table", (1.4, 0.7, 0.75)),
    "dresser": ("furniture", (1.0, 0.5, 0.9)),
    "floorobj": ("objects", (0.3, 0.3, 0.4)),
    "fridge": ("furniture", (0.7, 0.7, 1.8)),
    "kitlow": ("furniture", (0.6, 0.6, 0.9)),
    "kitup": ("furniture", (0.6, 0.35, 0.7)),
    "nightstand": ("furniture", (0.45, 0.4, 0.5)),
    "shelf": ("furniture", (0.9, 0.35, 1.9)),
    "small": ("objects", (0.15, 0.15, 0.22)),
    "sofa": ("sofa", (2.0, 0.9, 0.8)),
    "stool": ("chair", (0.4, 0.4, 0.5)),
    "table": ("table", (1.5, 0.9, 0.75)),
    "tvstand": ("furniture", (1.3, 0.45, 0.5)),
    "wardrobe": ("furniture", (1.4, 0.6, 2.0)),
}


class BoxCatalogue:
    """Plain boxes of ordinary sizes for every role: rooms without any model file, for dry runs and tests."""

    def draw(self, role: str, rng: np.random.Generator) -> Model | None:
        """A box of ``role`` in a random colour, its size varied by a tenth."""
        if role not in _BOXES:
            return None
        class_name, typical = _BOXES[role]
        width, depth, height = np.asarray(typical) * rng.uniform(0.9, 1.1, 3)
        surface = Material.plain(rng.uniform(0.15, 0.9, 3))
        mesh = box((-width / 2, -depth / 2, 0), (width / 2, depth / 2, height), surface)
        return Model(f"box-{role}", role, class_name, mesh)
