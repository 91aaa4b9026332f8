"""Features from which little can be learned, and the plain closed form that is fitted to them."""

from __future__ import annotations

from simo_merge.models.aligners import LinearSurgeryTap
from simo_merge.realign import CalibrationFeatures
from simo_merge.realign.chosen import write_change
from simo_merge.realign.closed_form import solve_change
from simo_merge.realign.methods import feature_moments
from tests.tiny import related_features

RIDGE = 0.01


def fitted(found: CalibrationFeatures, task: str, rank: int, ridge: float = RIDGE) -> LinearSurgeryTap:
    merged = found.merged
    tap = LinearSurgeryTap(merged.patches[0].shape[-1], merged.prefix[0].shape[1], rank)
    write_change(tap, solve_change(feature_moments(found)[0], task, rank, ridge))
    return tap


def one_image() -> CalibrationFeatures:
    return related_features(count=1)


def fewer_tokens_than_channels() -> CalibrationFeatures:
    return related_features(count=2, tokens=2, channels=16)


def without_prefix_tokens() -> CalibrationFeatures:
    return related_features(prefix=0)


def one_token() -> CalibrationFeatures:
    return related_features(count=1, tokens=1)


def huge_channels() -> CalibrationFeatures:
    found = related_features()
    for part in (found.merged, *found.experts.values()):
        for tensor in (part.patches[0], part.prefix[0]):
            tensor[..., 2] = tensor[..., 2] * 1e3 + 1e4
    return found


def dead_channels_of_the_merged_encoder() -> CalibrationFeatures:
    found = related_features()
    found.merged.patches[0][..., 1] = 1234.567
    found.merged.prefix[0][..., 1] = -0.1
    found.merged.patches[0][..., 2:4] = 0
    return found


def dead_channels_of_the_expert() -> CalibrationFeatures:
    found = related_features()
    found.experts["a"].patches[0][..., 1:3] = 77.7
    return found


def dead_tap_of_the_merged_encoder() -> CalibrationFeatures:
    found = related_features()
    found.merged.patches[0][:] = 0.3
    found.merged.prefix[0][:] = 0.3
    return found


def dead_tap_of_the_expert() -> CalibrationFeatures:
    found = related_features()
    found.experts["a"].patches[0][:] = 0.3
    found.experts["a"].prefix[0][:] = 0.3
    return found


def dead_taps_of_both() -> CalibrationFeatures:
    found = dead_tap_of_the_merged_encoder()
    found.experts["a"].patches[0][:] = 0
    found.experts["a"].prefix[0][:] = 0
    return found


DEGENERATE = [
    one_image,
    one_token,
    fewer_tokens_than_channels,
    without_prefix_tokens,
    huge_channels,
    dead_channels_of_the_merged_encoder,
    dead_channels_of_the_expert,
    dead_tap_of_the_merged_encoder,
    dead_tap_of_the_expert,
    dead_taps_of_both,
]
