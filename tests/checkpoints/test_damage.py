"""What is no checkpoint, or no longer one, is refused with a line that says what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from simo_merge.checkpoints import load, save
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel


@pytest.fixture
def saved(expert: SingleTaskModel, tmp_path: Path) -> Path:
    return save(expert, tmp_path / "expert")


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json as a person might."""
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    change(config)
    file.write_text(json.dumps(config), encoding="utf-8")


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change model.safetensors, keeping it a good file."""
    file = directory / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)


# -- no checkpoint ----------------------------------------------------------------------------------------------


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(SimoError, match=r"nothing does not exist; a checkpoint is a directory with config\.json"):
        load(tmp_path / "nothing")


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(SimoError, match=r"model\.pt is a file; a checkpoint is a directory"):
        load(tmp_path / "model.pt")


def test_a_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(SimoError, match=r"is no checkpoint: it has no config\.json"):
        load(tmp_path)


def test_a_directory_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}', encoding="utf-8")
    with pytest.raises(SimoError, match=r"is no simo_merge checkpoint: its config\.json has no \"format\""):
        load(tmp_path)


# -- a damaged config -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ['{"format": "simo_merge",', "", "\x00\x01", "[]", "null"])
def test_a_config_that_is_no_json_object(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(SimoError, match=r"config\.json is damaged"):
        load(saved)


def test_a_config_that_is_no_text(saved: Path) -> None:
    (saved / "config.json").write_bytes(b'{"format": "\xff\xfe"}')
    with pytest.raises(SimoError, match=r"config\.json is damaged"):
        load(saved)


@pytest.mark.parametrize("version", [2, None, "1"])
def test_a_version_that_this_program_does_not_read(saved: Path, version: object) -> None:
    edit(saved, lambda config: config.update(format_version=version))
    with pytest.raises(SimoError, match=r"format version .*; this simo_merge reads version 1"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("sha256"), "sha256: Field required"),
        (lambda c: c.update(extra=1), "extra: Extra inputs"),
        (lambda c: c["encoder"].update(taps="all"), r"encoder\.taps: Input should be a valid list"),
        (lambda c: c["encoder"].update(taps=[1, 3, 99]), "taps .* out of range"),
        (lambda c: c["encoder"].update(name="vit_nano"), "timm .* knows no model named 'vit_nano'"),
        (lambda c: c["tasks"][0].update(kind="poses"), "kind 'poses', expected one of"),
        (lambda c: c["tasks"].append(c["tasks"][0]), "a single-task model has one task and its decoder"),
        (lambda c: c["decoders"]["segmentation"].update(kind="mlp"), "unknown decoder 'mlp'"),
        (lambda c: c["decoders"]["segmentation"].pop("out_channels"), "options of decoder 'dpt' do not fit"),
    ],
)
def test_a_config_with_a_wrong_field(saved: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(saved, change)
    with pytest.raises(SimoError, match=message):
        load(saved)


def test_a_merged_config_with_an_aligner_of_no_task(merged: MultiTaskModel, tmp_path: Path) -> None:
    saved = save(merged, tmp_path / "merged")
    edit(saved, lambda c: c["aligners"].update(normals=c["aligners"]["depth"]))
    with pytest.raises(SimoError, match=r"aligners for unknown tasks \['normals'\]"):
        load(saved)


# -- damaged weights --------------------------------------------------------------------------------------------


def test_weights_that_are_missing(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(SimoError, match=r"model\.safetensors is missing; the checkpoint is incomplete"):
        load(saved)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_weights_that_were_cut_short(saved: Path, kept: int) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(SimoError, match=r"model\.safetensors is damaged or truncated"):
        load(saved)


@pytest.mark.parametrize("where", [-1, -10_001, 20, 3])
def test_a_byte_that_was_flipped(saved: Path, where: int) -> None:
    file = saved / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[where] ^= 0x20
    file.write_bytes(content)
    with pytest.raises(SimoError, match=r"damaged|does not fit|NaN or infinity"):
        load(saved)


def test_the_smallest_change_of_one_weight(saved: Path) -> None:
    rewrite(saved, lambda t: t["encoder.vit.norm.weight"][:1].nextafter_(torch.tensor(2.0)))
    with pytest.raises(SimoError, match=r"is not the file that config\.json was written with"):
        load(saved)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(saved: Path, value: float) -> None:
    rewrite(saved, lambda t: t["encoder.vit.norm.bias"][3:4].fill_(value))
    with pytest.raises(SimoError, match=r"model\.safetensors holds NaN or infinity in encoder\.vit\.norm\.bias"):
        load(saved)


def test_weights_of_another_model(saved: Path, merged: MultiTaskModel, tmp_path: Path) -> None:
    shutil.copy(save(merged, tmp_path / "merged") / "model.safetensors", saved / "model.safetensors")
    with pytest.raises(SimoError, match=r"does not fit config\.json: \d+ tensors missing .* \d+ unexpected"):
        load(saved)


def test_weights_of_another_shape(saved: Path) -> None:
    rewrite(saved, lambda t: t.update({"encoder.vit.norm.bias": torch.zeros(65)}))
    with pytest.raises(SimoError, match=r"1 of another shape \['encoder\.vit\.norm\.bias'\]"):
        load(saved)
