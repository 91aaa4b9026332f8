"""What all re-alignments share: which images are held out."""

from __future__ import annotations

import pytest

from simo_merge.errors import SimoError
from simo_merge.realign.realignment import fitted_images


@pytest.mark.parametrize(
    ("images", "held_out", "fitted"),
    [(0, 0.2, 0), (1, 0.2, 0), (2, 0.2, 1), (2, 0.9, 1), (3, 0.99, 1), (10, 0.01, 9), (10, 0.3, 7), (100, 0.2, 80)],
)
def test_the_last_images_are_held_out_and_both_parts_have_some(images: int, held_out: float, fitted: int) -> None:
    assert fitted_images(images, held_out) == fitted


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_is_none_is_refused(held_out: float) -> None:
    with pytest.raises(SimoError, match="between 0 and 1, got"):
        fitted_images(10, held_out)
