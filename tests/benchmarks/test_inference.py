"""The cost of prediction, measured on models small enough for a test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import inference
from simo_merge.models import MultiTaskModel

ASKED: dict[str, Any] = {
    "encoder": "test_vit", "decoder": "linear", "size": (32, 48), "rank": 4, "rounds": 3, "precision": "float32",
    "batches": [1, 2], "device": torch.device("cpu"), "compile": False, "warm_up": 1, "memory": False, "threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("inference") / "inference.json"
    given = ["--encoder", "test_vit", "--decoder", "linear", "--size", "32x48", "--tasks", "1", "3", "--rounds", "2"]
    assert inference.main([*given, "--rank", "4", "--no-memory", "--device", "cpu", "-o", str(output)]) == 0
    return json.loads(output.read_text())


def test_every_contestant_has_a_row_for_each_number_of_tasks_and_size_of_batch(written: dict[str, Any]) -> None:
    cells = [(row["tasks"], row["contestant"], row["batch"]) for row in written["rows"]]
    assert sorted(cells) == sorted((t, c, b) for t in (1, 3) for c in inference.CONTESTANTS for b in (1, 8))
    for row in written["rows"]:
        assert row["seconds"] > 0
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])
        if row["contestant"] == "floor":
            assert row["times_floor"] == 1
    assert {"torch", "cpu", "threads", "load before", "load after"} <= written["environment"].keys()


def test_the_table_has_a_line_for_each(written: dict[str, Any]) -> None:
    lines = inference.table(written["rows"]).splitlines()
    assert len(lines) == 2 + 2 * len(inference.CONTESTANTS)
    said = inference.told(written["rows"])
    assert said.startswith("folded within 5 % of the floor: ")
    assert " all taps, folded within 5 % of the floor: " in said
    assert inference.told([row for row in written["rows"] if row["contestant"] == "folded"]) in said


@pytest.mark.parametrize(("decoder", "rank"), [("linear", "4"), ("dpt", "4"), ("dpt", "none")])
def test_the_contestants_are_what_they_are_called(decoder: str, rank: str) -> None:
    tasks = inference.tasks_of(4)
    asked = ASKED | {"decoder": decoder, "rank": inference.arguments(["--rank", rank]).rank}
    made = {name: inference.contestant(name, tasks, asked) for name in inference.CONTESTANTS}
    assert len(made.pop("experts")) == 4
    floor, aligned, all_taps, folded, all_taps_folded = (model for (model,) in made.values())
    for kind, model in {"full-affine" if rank == "none" else "linear-surgery": aligned, "cross-tap": all_taps}.items():
        assert isinstance(model, MultiTaskModel)
        assert [a.config["kind"] for a in model.aligners.values()] == [kind] * 4
        assert all(float(p.detach().abs().min()) > 0 for p in model.aligners.parameters())
    assert not any(len(model.aligners) for model in (floor, folded, all_taps_folded))  # decoders take all of them in
    images = torch.rand(2, 3, 32, 48)
    for unfolded, taken_in in ((aligned, folded), (all_taps, all_taps_folded)):
        with torch.inference_mode():
            ours, theirs = unfolded(images), taken_in(images)
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_ratios_are_taken_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gets three times slower in every round leaves ratios as they are."""
    turns = {"n": 0}
    costs = {"experts": 8.0, "floor": 2.0, "aligned": 3.0, "all taps": 4.0, "folded": 2.0, "all taps, folded": 2.0}
    names: dict[int, str] = {}
    contestant = inference.contestant

    def made(name: str, *given: Any) -> list[torch.nn.Module]:
        found = contestant(name, *given)
        names[id(found)] = name
        return found

    def clocked(models: list[torch.nn.Module], images: torch.Tensor, precision: str) -> float:
        slower = 3.0 ** (turns["n"] // len(costs))
        turns["n"] += 1
        return slower * costs[names[id(models)]]

    monkeypatch.setattr(inference, "contestant", made)
    monkeypatch.setattr(inference, "timed", clocked)
    rows = {row["contestant"]: row for row in inference.measure(2, ASKED | {"batches": [1]})}
    assert rows["aligned"]["times_floor"] == pytest.approx(1.5)
    assert rows["folded"]["times_experts"] == pytest.approx(0.25)
    assert rows["experts"]["seconds"] == pytest.approx(24.0)  # the median round


def test_memory_is_what_the_model_takes(capsys: pytest.CaptureFixture[str]) -> None:
    job = json.dumps({**ASKED, "device": "cpu"})
    assert inference.main(["--child", "experts", "2", job]) == 0
    assert float(capsys.readouterr().out) >= 0


@pytest.mark.slow
def test_more_experts_take_more_memory_and_the_aligned_model_does_not() -> None:
    asked = ASKED | {"encoder": "vit_tiny_patch16_224", "batches": [1]}
    experts, aligned = (inference.memory(name, 6, asked) for name in ("experts", "aligned"))
    assert experts > aligned + 60  # six encoders of 22 MB against one


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="compiling for a CPU needs a C++ compiler")
def test_compiled_models_have_rows_beside_the_eager_ones(tmp_path: Path) -> None:
    output = tmp_path / "inference.json"
    given = ["--encoder", "test_vit", "--decoder", "linear", "--size", "32x48", "--tasks", "1", "--rounds", "2"]
    assert inference.main([*given, "--compile", "--no-memory", "--device", "cpu", "-o", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    for mode in ("eager", "compiled"):
        assert {row["contestant"] for row in rows if row["mode"] == mode} == set(inference.CONTESTANTS)
    assert "compiled" in inference.table(rows)
