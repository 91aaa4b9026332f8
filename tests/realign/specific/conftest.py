"""The tiny merged model and its experts, and enough images to hold some out."""

from __future__ import annotations

from tests.realign.conftest import experts, merged
from tests.realign.inside.conftest import images

__all__ = ["experts", "images", "merged"]
