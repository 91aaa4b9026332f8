"""Augmentation for training: geometry by our own rules, pixels by albumentations."""

from __future__ import annotations

from simo_merge.data.transforms.augmentation import RECIPES, Augmentation
from simo_merge.data.transforms.geometry import enlarge_and_crop, flip, zoom

__all__ = ["RECIPES", "Augmentation", "enlarge_and_crop", "flip", "zoom"]
