"""A disk with too little room for features: told beforehand, and nothing is lost where it fills up."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from simo_merge.errors import SimoError
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel
from simo_merge.realign import (
    EncoderCalibration,
    LinearSurgery,
    OnDisk,
    Realignment,
    SurgeryV2,
    capture,
    capture_all,
    on_disk,
    realign,
)
from tests.tiny import IMAGE_BYTES, NAME, TAPS, TinyData, passes_counted, state_of, tiny_base


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**15, 0, count))


def test_a_disk_that_is_too_small_is_told_before_anything_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    merged: MultiTaskModel,
    experts: list[SingleTaskModel],
    images: TinyData,
) -> None:
    by_task = {e.task.name: e for e in experts}
    passes = [passes_counted(e) for e in (merged.encoder, *(e.encoder for e in experts))]
    needed = 3 * len(images) * IMAGE_BYTES
    free(monkeypatch, needed - 1)
    with pytest.raises(SimoError, match=rf"(?s)6 images from 3 encoders need {needed / 1e9:.3g} GB .* GB are free.*bf"):
        capture_all(merged, by_task, images, keep=OnDisk(tmp_path))
    assert passes == [[], [], []]
    assert not list(tmp_path.iterdir())
    capture_all(merged, by_task, images, keep=OnDisk(tmp_path, "float16"))  # half of it
    free(monkeypatch, needed)
    capture_all(merged, by_task, images, keep=OnDisk(tmp_path))
    free(monkeypatch, 0)
    capture_all(merged, by_task, images, keep=OnDisk(tmp_path))  # all of it is there


@pytest.mark.parametrize("method", [EncoderCalibration(), SurgeryV2(rank=4, held_out=None)], ids=["shared", "each"])
def test_no_fit_is_lost_where_the_disk_has_no_room_for_the_distances_of_its_record(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    merged: MultiTaskModel,
    experts: list[SingleTaskModel],
    images: TinyData,
    method: Realignment,
) -> None:
    whole = realign(merged, experts, images, method, keep=OnDisk(tmp_path))
    assert whole.merge is not None
    assert "distances" in (whole.merge.alignment or {})
    room = OnDisk(tmp_path / "full")
    capture_all(merged, {e.task.name: e for e in experts}, images, keep=room)
    free(monkeypatch, 0)
    fitted = realign(merged, experts, images, method, keep=room)
    assert state_of(fitted) == state_of(whole)
    assert fitted.merge is not None
    assert "distances" not in (fitted.merge.alignment or {})
    assert "no distances to the experts" in caplog.text


def test_encoders_that_differ_from_task_to_task_are_counted_beforehand(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    merged: MultiTaskModel,
    experts: list[SingleTaskModel],
    images: TinyData,
) -> None:
    by_task = {e.task.name: e for e in experts}
    changed = realign(merged, experts, images, SurgeryV2(rank=4, held_out=None))
    free(monkeypatch, 5 * len(images) * IMAGE_BYTES - 1)
    with pytest.raises(SimoError, match="6 images from 5 encoders need"):
        realign(changed, experts, images, LinearSurgery(4), keep=OnDisk(tmp_path))
    features = capture_all(changed, by_task, images)
    free(monkeypatch, 2 * len(images) * IMAGE_BYTES - 1)
    with pytest.raises(SimoError, match="6 images from 2 encoders need"):
        realign(changed, experts, images, LinearSurgery(4), features, keep=OnDisk(tmp_path))
    del changed.block_changes["depth"]  # which reads what the merged encoder gives
    free(monkeypatch, 4 * len(images) * IMAGE_BYTES)
    realign(changed, experts, images, LinearSurgery(4), keep=OnDisk(tmp_path))


def test_a_disk_that_fills_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(on_disk.FeatureWriter, "note", full)
    with pytest.raises(SimoError, match="No space left on device; what is finished is kept"):
        capture(Encoder(tiny_base().vit, NAME, TAPS), TinyData(2), keep=OnDisk(tmp_path))


def test_a_file_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: object) -> None:
        raise PermissionError(13, "Permission denied")

    ours, images = Encoder(tiny_base().vit, NAME, TAPS), TinyData(2)
    monkeypatch.setattr(on_disk.FeatureFile, "_journals", refused)
    with pytest.raises(SimoError, match=r"cannot be made at .*features\.bin: Permission denied; name a folder"):
        capture(ours, images, keep=OnDisk(tmp_path))
