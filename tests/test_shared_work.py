"""Evaluation, capture and re-alignment by several processes: no image twice, and the sums of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.merging import TaskArithmetic, merge
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel
from simo_merge.realign import LinearSurgery, NormRecalibration, OnDisk, Surgery, capture, capture_all, realign
from simo_merge.realign.methods import Realignment, feature_moments
from simo_merge.scoring import score, score_sharing_encoder
from tests.processes import share_work
from tests.tiny import DEPTH, NAME, NORMALS, SEGMENTATION, TAPS, TinyData, state_of, tiny_base, tiny_expert

pytestmark = pytest.mark.slow
TASKS = (SEGMENTATION, DEPTH, NORMALS)


def models() -> tuple[MultiTaskModel, dict[str, SingleTaskModel]]:
    base = tiny_base()
    experts = [tiny_expert(task, base, seed) for seed, task in enumerate(TASKS, start=1)]
    return merge(experts, TaskArithmetic(0.3), tiny_base()), {e.task.name: e for e in experts}


def evaluated(count: int, protocol: str) -> dict[str, Any]:
    model, _ = models()
    data = TinyData(count, TASKS)
    data.samples[0].masks["depth"][:] = False
    read: list[str] = []

    class Counting(TinyData):
        def __getitem__(self, index: int) -> Any:
            read.append(data.keys[index])
            return data[index]

    scores = score(model, Counting(count, TASKS), batch_size=2, protocol=protocol)
    return {"scores": scores, "read": read, "shared": score_sharing_encoder({"it": model}, data, 2, protocol=protocol)}


@pytest.mark.parametrize("protocol", ["pooled", "mtan"])
@pytest.mark.parametrize("count", [5, 7, 1])
def test_two_processes_measure_what_one_does_and_read_no_image_twice(count: int, protocol: str) -> None:
    first, second = share_work(evaluated, count, protocol)
    one = evaluated(count, protocol)
    assert first["read"] + second["read"] == one["read"] == list(TinyData(count, TASKS).keys)
    assert str(first["scores"]) == str(second["scores"])  # of one image without a label the scores are NaN
    for task, found in one["scores"].items():
        assert first["scores"][task] == pytest.approx(found, rel=1e-12, nan_ok=True)
        assert first["shared"]["it"][task] == pytest.approx(found, rel=1e-6, nan_ok=True)


def captured(count: int) -> dict[str, Any]:
    model, experts = models()
    whole = capture(model.encoder, TinyData(count), batch_size=2)
    own = capture_all(model, experts, TinyData(count), batch_size=2, whole=False)
    return {"whole": whole, "own": own.merged, "moments": feature_moments(own)}


@pytest.mark.parametrize("count", [5, 8, 2])  # of two images the second process has none
def test_features_come_whole_or_in_shares_and_their_moments_add_up_exactly(count: int) -> None:
    first, second = share_work(captured, count)
    one = captured(count)
    for found in (first, second):
        assert found["whole"].keys == one["whole"].keys == TinyData(count).keys
        assert (found["whole"].grid, found["whole"].image_size) == (one["whole"].grid, one["whole"].image_size)
        assert not found["own"].whole
        for tap in range(len(TAPS)):
            assert torch.equal(found["whole"].patches[tap], one["whole"].patches[tap])
            assert torch.equal(found["whole"].prefix[tap], one["whole"].prefix[tap])
    assert first["own"].keys + second["own"].keys == one["own"].keys
    for ours, also, theirs in zip(first["moments"], second["moments"], one["moments"], strict=True):
        for a, b, c in zip(ours.groups, also.groups, theirs.groups, strict=True):
            assert a.count == b.count == c.count
            pairs = [("x", a.x, b.x, c.x), ("xx", a.xx, b.xx, c.xx)]
            for part in ("y", "xy", "yy"):
                pairs += [(part, getattr(a, part)[t], getattr(b, part)[t], getattr(c, part)[t]) for t in c.y]
            for name, one_, two, expected in pairs:
                assert torch.equal(one_, two), name
                scale = expected.abs().max()
                assert (one_ - expected).abs().max() <= 1e-12 * scale, name


def aligned(method: Realignment) -> dict[str, Any]:
    model, experts = models()
    found = realign(model, experts, TinyData(6, TASKS), method)
    return {"bits": state_of(found), "state": found.aligners.state_dict(), "record": found.merge.alignment}


@pytest.mark.parametrize("method", [LinearSurgery(rank=4), NormRecalibration(), Surgery(rank=2, steps=3)])
def test_two_processes_fit_the_aligners_that_one_fits(method: Realignment) -> None:
    first, second = share_work(aligned, method)
    one = aligned(method)
    assert first["bits"] == second["bits"]
    assert first["record"]["images"] == one["record"]["images"] == 6
    for name, value in one["state"].items():
        torch.testing.assert_close(first["state"][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def kept(folder: str, count: int) -> dict[str, Any]:
    model, experts = models()
    passes: list[int] = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    keep = OnDisk(folder, "bfloat16")
    whole = capture(model.encoder, TinyData(count), batch_size=2, keep=keep)
    own = capture_all(model, experts, TinyData(count), batch_size=2, whole=False, keep=keep)
    return {"passes": sum(passes), "whole": whole, "own": own.merged, "moments": feature_moments(own)}


@pytest.mark.parametrize("count", [5, 8, 2])
def test_processes_write_one_file_and_map_all_of_it_or_their_share(tmp_path: Path, count: int) -> None:
    first, second = share_work(kept, str(tmp_path), count)
    assert first["passes"] + second["passes"] == count  # and none again
    one = kept(str(tmp_path), count)  # a single process finds it
    assert one["passes"] == 0
    expected = capture(models()[0].encoder, TinyData(count), batch_size=2)
    for found in (first, second, one):
        assert found["whole"].keys == expected.keys
        for tap in range(len(TAPS)):
            assert torch.equal(found["whole"].patches[tap], expected.patches[tap].bfloat16())
            assert torch.equal(found["whole"].prefix[tap], expected.prefix[tap].bfloat16())
    assert first["own"].keys + second["own"].keys == expected.keys
    for tap in range(len(TAPS)):
        own = torch.cat([found["own"].patches[tap] for found in (first, second)])
        assert torch.equal(own, expected.patches[tap].bfloat16())
        for found in (first, second):
            theirs = one["moments"][tap].patches.xx
            assert (found["moments"][tap].patches.xx - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def fails_in_one(folder: str) -> None:
    model, _ = models()
    data = TinyData(8)
    data.samples[7].image[:] = torch.nan
    capture(model.encoder, data, batch_size=2, keep=OnDisk(folder))


def test_what_one_process_cannot_capture_is_told_by_all_and_the_rest_kept(tmp_path: Path) -> None:
    for error in share_work(fails_in_one, str(tmp_path)):
        assert isinstance(error, SimoError)
        assert "holds NaN" in str(error)
    assert len(list(tmp_path.glob("*/journal-*.json"))) == 2


def streamed(method: Realignment, count: int) -> dict[str, Any]:
    model, experts = models()
    found = realign(model, experts, TinyData(count), method, stream=True)
    return {"bits": state_of(found), "state": found.aligners.state_dict(), "record": found.merge.alignment}


@pytest.mark.parametrize("count", [20, 3])  # of three images the second process has none
@pytest.mark.parametrize(
    "method",
    [
        LinearSurgery(rank=4, stretch="directions"),
        LinearSurgery(rank=4, ridge="auto", reads="all"),
    ],
)
def test_two_processes_stream_what_one_streams(method: Realignment, count: int) -> None:
    first, second = share_work(streamed, method, count)
    one = streamed(method, count)
    assert first["bits"] == second["bits"]
    assert first["record"]["distances"] == second["record"]["distances"]
    assert first["record"]["images"] == count
    for name, value in one["state"].items():
        torch.testing.assert_close(first["state"][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def broken(what: str) -> None:
    model, _ = models()
    data = TinyData(6, TASKS)
    if what == "NaN":
        data.samples[5].image[:] = torch.nan
        score(model, data, batch_size=2)
    if what == "features":
        data.samples[5].image[:] = torch.nan
        capture(Encoder(tiny_base().vit, NAME, TAPS), data, batch_size=2)
    odd = TinyData(1, TASKS, size=(48, 32)).samples[0]
    data.samples[4:] = [odd, odd]
    capture(model.encoder, data, batch_size=2)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("NaN", "are NaN or infinite; the model has diverged"),
        ("features", "gives at block 1 holds NaN or infinity"),
        ("sizes", "calibration images of different sizes"),
    ],
)
def test_what_one_process_finds_wrong_is_told_by_all(what: str, said: str) -> None:
    for error in share_work(broken, what):
        assert isinstance(error, SimoError)
        assert said in str(error)
