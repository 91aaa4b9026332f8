"""simo_merge: merges single-task dense-prediction ViTs, then re-aligns the features without labels."""

from simo_merge import _torchvision  # noqa: F401  # must come before anything that imports torchvision

__version__ = "0.1.0"

__all__ = ["__version__"]
