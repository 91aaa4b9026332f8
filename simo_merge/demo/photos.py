"""Real photographs that come with scikit-image and scikit-learn."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import Tensor

from simo_merge.data import read_image, resize_longer_side
from simo_merge.errors import SimoError

PHOTOGRAPHS = {
    "coffee": ("skimage", "data/coffee.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
}
"""Title -> (package, file): photographs with things that the demo's tasks know, as far as there are any."""

CREDITS = (
    "Photographs: coffee by Rachel Michetti (CC0), the astronaut Eileen Collins by NASA (public domain), the cat "
    "Chelsea by Stefan van der Walt (CC0) and the motorcycle of the Middlebury 2014 stereo benchmark by Nera Nesic "
    "and others, as scikit-image ships them; the summer palace in Beijing by danielbuechele (CC BY 2.0), as "
    "scikit-learn ships it."
)


def photographs(longer_side: int) -> dict[str, Tensor]:
    """Title -> image (3, H, W) in [0, 1], scaled so that the longer side has this many pixels.

    Raises:
        SimoError: scikit-image or scikit-learn is not installed.
    """
    found: dict[str, Tensor] = {}
    for title, (package, file) in PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise SimoError(
                "the photographs come with scikit-image and scikit-learn; install them: pip install simo-merge[photos]"
            )
        found[title] = resize_longer_side(read_image(Path(spec.origin).parent / file), longer_side)
    return found
