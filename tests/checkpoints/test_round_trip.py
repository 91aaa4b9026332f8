"""A model that was saved and loaded is the same model, and its directory says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from simo_merge.checkpoints import load, load_expert, model_fingerprint, save
from simo_merge.errors import SimoError
from simo_merge.models import Aligner, MultiTaskModel, SingleTaskModel, build_decoder, fold_aligners
from simo_merge.models.aligners import PER_TAP, TAP_ALIGNERS


def card(directory: Path) -> tuple[dict[str, object], str]:
    """Front matter and text of a model card."""
    _, front, text = (directory / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_an_expert_comes_back_with_equal_predictions_and_its_history(
    expert: SingleTaskModel, images: torch.Tensor, tmp_path: Path
) -> None:
    again = load(save(expert, tmp_path / "expert"))
    assert isinstance(again, SingleTaskModel)
    assert not again.training
    with torch.inference_mode():
        assert torch.equal(again(images), expert(images))
    assert again.task == expert.task
    assert again.base == expert.base
    assert again.encoder.taps == (1, 3, 5)
    assert again.encoder.grid_size == (32, 48)
    assert again.decoder.config == expert.decoder.config
    assert model_fingerprint(again) == model_fingerprint(expert)
    assert again.provenance == {**expert.provenance, "path": str(tmp_path / "expert")}


def test_a_merged_and_aligned_model_comes_back_with_equal_predictions_and_its_history(
    merged: MultiTaskModel, images: torch.Tensor, tmp_path: Path
) -> None:
    again = load(save(merged, tmp_path / "merged"))
    assert isinstance(again, MultiTaskModel)
    with torch.inference_mode():
        before, after = merged(images), again(images)
    assert list(after) == list(before) == ["segmentation", "depth"]
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert set(again.aligners) == {"depth"}
    assert again.merge == merged.merge
    assert again.base == merged.base


ALIGNERS: dict[str, dict[str, Any]] = {
    "surgery": {"rank": 2},
    "linear-surgery": {"rank": 2},
    "affine": {},
    "identity": {},
    "shift": {},
    "magnitude": {},
    "full-affine": {},
    "cross-tap": {"rank": None},
    "token-linear": {"rank": 2},
    "spatial": {"rank": 2, "directions": 3},
    "per-tap": {"each": [{"kind": "identity"}, {"kind": "cross-tap", "rank": 2}, {"kind": "shift"}]},
}


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("kind", ALIGNERS)
def test_every_aligner_comes_back_with_equal_predictions_folded_or_not(
    merged: MultiTaskModel, images: torch.Tensor, tmp_path: Path, kind: str, fold: bool
) -> None:
    assert {*ALIGNERS} == {*TAP_ALIGNERS, PER_TAP}
    aligner = Aligner(kind, merged.encoder.tap_channels, merged.encoder.prefix_tokens, **ALIGNERS[kind])
    for parameter in aligner.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    merged.aligners["depth"] = aligner
    again = load(save(merged, tmp_path / "merged", fold=fold))
    assert isinstance(again, MultiTaskModel)
    assert again.merge is not None
    with torch.inference_mode():
        before, after = merged(images), again(images)
    if fold and kind not in ("surgery", "spatial"):
        assert len(again.aligners) == 0
        assert (again.merge.alignment or {})["folded"] == ["depth"]
        torch.testing.assert_close(after["depth"], before["depth"], rtol=1e-3, atol=1e-4)
    else:
        assert torch.equal(after["depth"], before["depth"])
        assert again.merge == merged.merge
    assert torch.equal(after["segmentation"], before["segmentation"])


@pytest.mark.parametrize("rank", [2, None])
def test_a_dpt_that_reads_all_taps_comes_back(
    merged: MultiTaskModel, images: torch.Tensor, tmp_path: Path, rank: int | None
) -> None:
    """As folding an aligner that does makes it; loaded, it predicts the same to the bit."""
    merged.decoders["depth"] = build_decoder("dpt", merged.encoder, 1, intermediate_channels=(8, 8, 8)).eval()
    merged.aligners["depth"] = Aligner(
        "cross-tap", merged.encoder.tap_channels, merged.encoder.prefix_tokens, rank=rank
    )
    for parameter in merged.aligners["depth"].parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folded = fold_aligners(merged)
    again = load(save(folded, tmp_path / "folded"))
    assert isinstance(again, MultiTaskModel)
    assert again.decoders["depth"].config["cross_tap_ranks"] == [rank] * 3  # type: ignore[index]
    with torch.inference_mode():
        before, after, loaded = (model(images)["depth"] for model in (merged, folded, again))
    assert torch.equal(loaded, after)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_a_merged_model_without_aligner_or_record_comes_back(
    merged: MultiTaskModel, images: torch.Tensor, tmp_path: Path
) -> None:
    plain = MultiTaskModel(merged.encoder, dict(merged.decoders.items()), merged.tasks)
    again = load(save(plain, tmp_path / "merged"))
    assert isinstance(again, MultiTaskModel)
    assert again.merge is None
    assert again.base is None
    assert len(again.aligners) == 0


def test_a_model_that_moves_keeps_no_trace_of_where_it_lay(expert: SingleTaskModel, tmp_path: Path) -> None:
    moved = load(save(expert, tmp_path / "first"))
    save(moved, tmp_path / "second")
    assert "first" not in (tmp_path / "second" / "config.json").read_text(encoding="utf-8")
    assert load_expert(tmp_path / "second").provenance["path"] == str(tmp_path / "second")


def test_saving_twice_writes_the_same_bytes(expert: SingleTaskModel, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(expert, tmp_path / name)
    for file in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_files_are_plain_safetensors_and_json(expert: SingleTaskModel, tmp_path: Path) -> None:
    directory = save(expert, tmp_path / "expert")
    assert sorted(p.name for p in directory.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    assert tensors.keys() == expert.state_dict().keys()
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    assert (config["format"], config["format_version"], config["kind"]) == ("simo_merge", 1, "single-task")
    assert config["tasks"][0]["classes"] == ["floor", "Bücherregal"]


def test_saving_leaves_the_model_alone(expert: SingleTaskModel, tmp_path: Path) -> None:
    expert.train()
    before = model_fingerprint(expert)
    save(expert, tmp_path / "expert")
    assert expert.training
    assert model_fingerprint(expert) == before


def test_an_expert_is_asked_for_and_a_merged_model_found(merged: MultiTaskModel, tmp_path: Path) -> None:
    save(merged, tmp_path / "merged")
    with pytest.raises(SimoError, match=r"multi-task model \(segmentation, depth\); a single-task model is needed"):
        load_expert(tmp_path / "merged")


# -- the model card ---------------------------------------------------------------------------------------------


def test_the_card_of_an_expert_names_task_encoder_and_base(expert: SingleTaskModel, tmp_path: Path) -> None:
    front, text = card(save(expert, tmp_path / "expert"))
    assert front == {"library_name": "simo_merge", "tags": ["simo_merge", "single-task", "segmentation"]}
    assert "# Single-task model: segmentation" in text
    assert "| encoder | `test_vit`, taps at blocks 1, 3, 5 (counted from 0) |" in text
    assert f"`test_vit` from timm:tiny, SHA-256 {'0' * 64}" in text
    assert "merged by" not in text


def test_the_card_of_a_merged_model_names_how_it_was_made(merged: MultiTaskModel, tmp_path: Path) -> None:
    front, text = card(save(merged, tmp_path / "merged"))
    assert front["tags"] == ["simo_merge", "multi-task", "segmentation", "depth"]
    assert "| merged by | task-arithmetic (scale = 0.3) |" in text
    assert "| re-aligned by | method = surgery-closed-form, rank = 2, images = 24 |" in text
    assert "| encoder passes for all tasks | 1 |" in text


def test_the_card_of_an_imported_model_does_not_pretend_to_know_its_base(
    expert: SingleTaskModel, tmp_path: Path
) -> None:
    expert.base = None
    _, text = card(save(expert, tmp_path / "expert"))
    assert "| base weights | unknown |" in text
    assert "are not recorded" in text


def test_every_table_row_of_a_card_stands_in_one_table(merged: MultiTaskModel, tmp_path: Path) -> None:
    lines = card(save(merged, tmp_path / "merged"))[1].splitlines()
    rows = [i for i, line in enumerate(lines) if line.startswith("|")]
    assert rows == list(range(rows[0], rows[-1] + 1))
    assert lines[rows[-1] + 1] == ""
