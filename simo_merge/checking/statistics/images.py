"""What the pictures are like, labels aside."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class ImageStatistics:
    """Sizes, brightness, and pictures that occur twice.

    Memory: a digest of 16 bytes and a key for each picture.

    Attributes:
        sizes: (height, width) -> how many pictures have it.
        lowest, highest: The extreme values of all pixels.
        flat: Keys of pictures that have one colour only.
        twins: Key of a picture -> keys of later ones with exactly the same pixels.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    lowest: float = float("inf")
    highest: float = float("-inf")
    flat: list[str] = field(default_factory=list)
    twins: dict[str, list[str]] = field(default_factory=dict)
    _brightness: float = 0.0
    _first: dict[bytes, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many pictures were read."""
        return sum(self.sizes.values())

    @property
    def brightness(self) -> float:
        """Mean over all pictures of their mean value, 0 to 1."""
        return self._brightness / max(self.count, 1)

    def add(self, image: Tensor, key: str) -> None:
        """Count one picture (3, H, W)."""
        self.sizes[int(image.shape[1]), int(image.shape[2])] += 1
        low, high = float(image.min()), float(image.max())
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        self._brightness += float(image.mean())
        if float((image - image[:, :1, :1]).abs().max()) == 0:
            self.flat.append(key)
            return  # two black pictures are no copies of each other
        pixels = (image * 255).round().clamp(0, 255).byte().contiguous().numpy()
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=16, person=str(image.shape[2]).encode()[:16]).digest()
        first = self._first.setdefault(digest, key)
        if first != key:
            self.twins.setdefault(first, []).append(key)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        sizes = {f"{height}x{width}": count for (height, width), count in self.sizes.most_common()}
        return {"read": self.count, "sizes": sizes, "brightness": round(self.brightness, 4)}
