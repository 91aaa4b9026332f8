"""Aligners: small per-task modules between the taps and a decoder.

An aligner maps merged features towards the features that the task's expert would have had. It sits after the
taps, so one encoder pass serves every task. How aligners are fitted is the business of `simo_merge.realign`.
"""

from simo_merge.models.aligners.aligner import PER_TAP, TAP_ALIGNERS, Aligner, aligner_from_config
from simo_merge.models.aligners.base import TapAligner, TokenMaps
from simo_merge.models.aligners.linear import Change, CrossTapTap, FullAffineTap, TokenLinearTap
from simo_merge.models.aligners.simple import AffineTap, IdentityTap, MagnitudeTap, ShiftTap
from simo_merge.models.aligners.spatial import SpatialTap
from simo_merge.models.aligners.stretched import CHANNELS, DIRECTIONS, StretchedTap
from simo_merge.models.aligners.surgery import LinearSurgeryTap, SurgeryTap

__all__ = [
    "CHANNELS",
    "DIRECTIONS",
    "PER_TAP",
    "TAP_ALIGNERS",
    "AffineTap",
    "Aligner",
    "Change",
    "CrossTapTap",
    "FullAffineTap",
    "IdentityTap",
    "LinearSurgeryTap",
    "MagnitudeTap",
    "ShiftTap",
    "SpatialTap",
    "StretchedTap",
    "SurgeryTap",
    "TapAligner",
    "TokenLinearTap",
    "TokenMaps",
    "aligner_from_config",
]
