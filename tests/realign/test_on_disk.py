"""Features in files: what memory would hold, found again, and gone on with after a kill."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel
from simo_merge.realign import (
    REALIGNMENTS,
    CalibrationFeatures,
    Features,
    OnDisk,
    capture,
    capture_all,
    distances,
    error_maps,
    feature_planes,
    on_disk,
    realign,
    tap_distances,
)
from simo_merge.realign.on_disk import FeatureFile
from tests.processes import killed
from tests.tiny import DEPTH, IMAGE_BYTES, NAME, SEGMENTATION, TAPS, TinyData, passes_counted, state_of, tiny_base


def encoder(seed: int = 0) -> Encoder:
    return Encoder(tiny_base(seed).vit, NAME, TAPS)


def in_memory(found: Features) -> Features:
    """The same values in float32."""
    return replace(
        found,
        patches=tuple(p.float().clone() for p in found.patches),
        prefix=tuple(p.float().clone() for p in found.prefix),
    )


def same(ours: Features, theirs: Features) -> bool:
    pairs = zip((*ours.patches, *ours.prefix), (*theirs.patches, *theirs.prefix), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(autouse=True)
def note_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "JOURNAL_SECONDS", 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_files_hold_what_memory_holds_in_their_type(tmp_path: Path, dtype: str, batch_size: int) -> None:
    ours, images = encoder(), TinyData(5)
    kept = capture(ours, images, batch_size, keep=OnDisk(tmp_path, dtype))  # type: ignore[arg-type]
    expected = capture(ours, images, batch_size)
    kind = getattr(torch, dtype)
    assert kept.keys == expected.keys
    assert (kept.grid, kept.image_size, kept.encoder) == (expected.grid, expected.image_size, expected.encoder)
    for a, b in zip((*kept.patches, *kept.prefix), (*expected.patches, *expected.prefix), strict=True):
        assert a.dtype == kind
        assert torch.equal(a, b.to(kind))
    (file,) = tmp_path.glob("*/features.bin")
    assert file.stat().st_size == 5 * IMAGE_BYTES * kind.itemsize // 4
    some = torch.tensor([3, 1])
    taps, subset = kept.taps(some), kept.subset(slice(1, 4)).taps(torch.tensor([2, 0]))
    for a, b, c in zip(
        (*taps.maps, *taps.prefix), (*subset.maps, *subset.prefix), (expected.taps(some)[0]), strict=False
    ):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
        assert torch.equal(a, c.to(kind).float())


def test_encoders_without_a_prefix_token_have_none(tmp_path: Path) -> None:
    vit = tiny_base(class_token=False, global_pool="avg").vit
    kept = capture(Encoder(vit, NAME, TAPS), TinyData(3), keep=OnDisk(tmp_path))
    assert [p.shape for p in kept.prefix] == [(3, 0, 48)] * 2
    assert same(kept, capture(Encoder(vit, NAME, TAPS), TinyData(3)))


def test_what_is_there_is_found_and_not_run_again(tmp_path: Path) -> None:
    ours, images = encoder(), TinyData(5)
    first = capture(ours, images, 2, keep=OnDisk(tmp_path))
    passes = passes_counted(ours)
    assert same(capture(ours, images, 2, keep=OnDisk(tmp_path)), first)
    assert passes == []


def changed_pixels() -> TinyData:
    data = TinyData(5)
    data.samples[0].image[:, 0, 0] += 0.1
    return data


@pytest.mark.parametrize(
    ("weights", "images", "dtype", "precision"),
    [
        (1, TinyData(5), "float32", "float32"),
        (0, TinyData(4), "float32", "float32"),
        (0, TinyData(5, seed=1), "float32", "float32"),
        (0, TinyData(5, size=(32, 32)), "float32", "float32"),
        (0, changed_pixels(), "float32", "float32"),
        (0, TinyData(5), "bfloat16", "float32"),
        (0, TinyData(5), "float32", "bfloat16"),
    ],
    ids=["encoder", "fewer images", "other images", "size", "pixels", "type", "precision"],
)
def test_what_was_captured_otherwise_is_captured_anew(
    tmp_path: Path, weights: int, images: TinyData, dtype: str, precision: str
) -> None:
    capture(encoder(), TinyData(5), 2, keep=OnDisk(tmp_path))
    other = encoder(weights)
    passes = passes_counted(other)
    found = capture(other, images, 2, precision, keep=OnDisk(tmp_path, dtype))  # type: ignore[arg-type]
    assert sum(passes) == len(images)
    assert len(found) == len(images)


def test_one_number_of_a_weight_makes_another_encoder(tmp_path: Path) -> None:
    ours = encoder()
    capture(ours, TinyData(2), keep=OnDisk(tmp_path))
    ours.get_parameter("vit.blocks.0.mlp.fc1.weight").data[-1, -1] += 1.0
    passes = passes_counted(ours)
    capture(ours, TinyData(2), keep=OnDisk(tmp_path))
    assert passes == [2]


class Failing(TinyData):
    """Images of which one cannot be read."""

    def __getitem__(self, index: int) -> object:  # type: ignore[override]
        if index == 6:
            raise SimoError("the disk with the pictures is gone")
        return super().__getitem__(index)


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_capture_that_failed_goes_on_where_it_was(
    tmp_path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_disk, "JOURNAL_SECONDS", seconds)  # an error leaves time for the journal
    ours = encoder()
    with pytest.raises(SimoError, match="the disk with the pictures is gone"):
        capture(ours, Failing(8), 2, keep=OnDisk(tmp_path))
    (journal,) = tmp_path.glob("*/journal.json")
    assert json.loads(journal.read_text())["finished"] == [0, 1, 2]
    passes = passes_counted(ours)
    found = capture(ours, TinyData(8), 2, keep=OnDisk(tmp_path))
    assert passes == [2]
    assert same(found, capture(ours, TinyData(8), 2))


class Killing(TinyData):
    """Images on the way to which the process is killed."""

    def __getitem__(self, index: int) -> object:  # type: ignore[override]
        if index == 17:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def captured_until_killed(folder: str) -> None:
    on_disk.JOURNAL_SECONDS = 0.0
    capture(encoder(), Killing(20), 2, keep=OnDisk(folder, "bfloat16"))


@pytest.mark.slow
def test_a_capture_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    killed(captured_until_killed, str(tmp_path))
    (journal,) = tmp_path.glob("*/journal.json")
    done = json.loads(journal.read_text())["finished"]
    assert 1 <= len(done) < 9  # batches are read ahead of the encoder
    ours = encoder()
    passes = passes_counted(ours)
    found = capture(ours, TinyData(20), 2, keep=OnDisk(tmp_path, "bfloat16"))
    assert sum(passes) == 20 - 2 * len(done)
    for a, b in zip(found.patches, capture(ours, TinyData(20), 2).patches, strict=True):
        assert torch.equal(a, b.bfloat16())


def test_what_is_half_done_is_never_taken_for_whole(tmp_path: Path) -> None:
    ours, keep = encoder(), OnDisk(tmp_path)
    expected = capture(ours, TinyData(6), 2, keep=keep)
    (folder,) = tmp_path.iterdir()
    passes = passes_counted(ours)
    journal = folder / "journal.json"
    whole = journal.read_text()
    for broken in ("", "[]", whole[:-20], json.dumps({**json.loads(whole), "key": {}})):
        journal.write_text(broken)
        assert same(capture(ours, TinyData(6), 2, keep=keep), expected)
        assert sum(passes) == 6
        passes.clear()
    os.truncate(folder / "features.bin", 100)  # the mapping of `expected` is not used from here on
    assert len(capture(ours, TinyData(6), 2, keep=keep)) == 6
    assert sum(passes) == 6
    passes.clear()
    (folder / "features.bin").unlink()
    (folder / "journal-1.json").write_text(whole)  # of a process of the past
    assert same(capture(ours, TinyData(6), 2, keep=keep), capture(encoder(), TinyData(6), 2))
    assert sum(passes) == 6


def test_two_runs_that_write_the_same_features_do_not_forget_each_others_batches(tmp_path: Path) -> None:
    ours, images, keep = encoder(), TinyData(6), OnDisk(tmp_path)
    whole = capture(ours, images, 2, keep=keep)
    file = FeatureFile.of(ours, images, 2, "float32", keep, lambda size: whole.grid)
    parts = [p[:2].contiguous() for pair in zip(whole.patches, whole.prefix, strict=True) for p in pair]
    with file.writing(set()) as slower:  # it began before the other, and has come to its first batch
        slower.add(0, parts)
    assert file.finished() == {0, 1, 2}
    assert same(capture(ours, images, 2, keep=keep), whole)


def large(factor: float) -> Encoder:
    ours = encoder()
    ours.get_parameter("vit.blocks.2.mlp.fc2.bias").data[7] = factor
    return ours


def test_what_float16_cannot_hold_is_refused_and_its_tap_named(tmp_path: Path) -> None:
    ours = large(70_000.0)
    with pytest.raises(SimoError, match=r"at block 3 reaches 7\d{4}, and float16 ends at 65504; .*bfloat16"):
        capture(ours, TinyData(3), keep=OnDisk(tmp_path, "float16"))
    found = capture(ours, TinyData(3), keep=OnDisk(tmp_path, "bfloat16"))
    assert found.patches[1].max() > 65504
    assert capture(large(60_000.0), TinyData(3), keep=OnDisk(tmp_path, "float16")).patches[1].isfinite().all()


def test_images_of_different_sizes_and_broken_features_are_refused(tmp_path: Path) -> None:
    images = TinyData(5)
    images.samples[2] = replace(images.samples[2], image=torch.rand(3, 48, 48))
    with pytest.raises(SimoError, match=r"(?s)32, 48.*48, 48.*val-0-2"):
        capture(encoder(), images, 1, keep=OnDisk(tmp_path))
    with pytest.raises(SimoError, match="NaN"):
        capture(large(torch.nan), TinyData(5), 1, keep=OnDisk(tmp_path))


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(SimoError, match="features are kept as float32, float16, bfloat16; got 'int8'"):
        OnDisk("folder", "int8")  # type: ignore[arg-type]


FAST = {
    "surgery": {"steps": 3},
    "surgery-v2-gradient": {"steps": 3},
    "surgery-gradient": {"epochs": 2, "batch_size": 2},
    "head": {"steps": 3},
    "head-distilled": {"steps": 3, "surgery": 4},
    "encoder-adapters": {"epochs": 2, "rank": 2},
    "encoder-norms": {"epochs": 2},
    "encoder-distilled": {"steps": 4, "batch_size": 2},
}


@pytest.fixture
def kept(
    tmp_path: Path, merged: MultiTaskModel, experts: list[SingleTaskModel]
) -> tuple[TinyData, CalibrationFeatures, CalibrationFeatures]:
    """Images, their features in half precise files, and the same values in memory."""
    data = TinyData(6, (SEGMENTATION, DEPTH))
    files = capture_all(merged, {e.task.name: e for e in experts}, data, 4, keep=OnDisk(tmp_path, "bfloat16"))
    memory = CalibrationFeatures(in_memory(files.merged), {t: in_memory(f) for t, f in files.experts.items()})
    return data, files, memory


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, FAST.get(name, {})) for name in REALIGNMENTS),
        ("surgery-closed-form", {"rank": "auto", "objective": "decoder", "reads": "all", "stretch": "directions"}),
        ("surgery", {"steps": 3, "start": "closed-form"}),
    ],
)
def test_every_method_fits_to_files_what_it_fits_to_the_same_values_in_memory(
    merged: MultiTaskModel,
    experts: list[SingleTaskModel],
    kept: tuple[TinyData, CalibrationFeatures, CalibrationFeatures],
    name: str,
    options: dict[str, object],
) -> None:
    data, files, memory = kept
    method = REALIGNMENTS[name](**options)
    ours, theirs = (realign(merged, experts, data, method, features, "cpu") for features in (files, memory))
    assert state_of(ours) == state_of(theirs)
    assert (ours.merge is None) == (theirs.merge is None)
    for model in (ours, theirs):
        assert model.merge is not None
        (model.merge.alignment or {}).pop("fit_seconds")  # type: ignore[attr-defined]
    assert ours.merge == theirs.merge  # distances before and after among them


def test_what_is_measured_on_files_is_what_is_measured_in_memory(
    merged: MultiTaskModel,
    experts: list[SingleTaskModel],
    kept: tuple[TinyData, CalibrationFeatures, CalibrationFeatures],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, files, memory = kept
    aligner = realign(merged, experts, data, features=memory, device="cpu").aligner("depth")
    monkeypatch.setattr(distances, "_CHUNK", 4)
    for given in (None, aligner):
        a, b = ((f.merged, f.experts["depth"]) for f in (files, memory))
        assert tap_distances(*a, TAPS, given, cka=True) == tap_distances(*b, TAPS, given, cka=True)
        assert torch.equal(error_maps(*a, given), error_maps(*b, given))
        for one, two in zip(feature_planes(*a, TAPS, given), feature_planes(*b, TAPS, given), strict=True):
            assert torch.equal(one.expert, two.expert)
            assert torch.equal(one.merged, two.merged)
            assert isinstance(one.aligned, Tensor) == (given is not None)


def test_realign_keeps_what_it_captures(
    tmp_path: Path, merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    ours = realign(merged, experts, images, device="cpu", keep=OnDisk(tmp_path))
    assert len(list(tmp_path.glob("*/features.bin"))) == 3
    passes = passes_counted(experts[0].encoder)
    again = realign(merged, experts, images, device="cpu", keep=OnDisk(tmp_path))
    assert passes == []
    assert state_of(ours) == state_of(again) == state_of(realign(merged, experts, images, device="cpu"))
