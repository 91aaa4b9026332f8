"""Files that hold no weights, other weights, or code are refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from simo_merge.errors import SimoError
from simo_merge.weights import load_base
from tests.weights.models import TINY, Tensors


def refusal(tensors: Tensors, tmp_path: Path) -> str:
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(SimoError) as caught:
        load_base(TINY, tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_unexpected_and_misshapen_tensors_are_named(tiny: Tensors, tmp_path: Path) -> None:
    kept = {name: value for name, value in tiny.items() if ".5." not in name}
    kept |= {"blocks.0.extra": torch.ones(1), "norm.weight": torch.ones(65)}
    message = refusal(kept, tmp_path)
    for words in (
        "12 missing: blocks.5.",
        "and 9 more",
        "1 unexpected: blocks.0.extra",
        "norm.weight (65,) instead",
    ):
        assert words in message, message


def test_patches_of_another_size_are_another_model(tiny: Tensors, tmp_path: Path) -> None:
    message = refusal({**tiny, "patch_embed.proj.weight": torch.ones(64, 3, 14, 14)}, tmp_path)
    assert "patch_embed.proj.weight (64, 3, 14, 14) instead of (64, 3, 16, 16)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(value: float, tiny: Tensors, tmp_path: Path) -> None:
    spoiled = {**tiny, "blocks.2.mlp.fc1.bias": torch.full_like(tiny["blocks.2.mlp.fc1.bias"], value)}
    assert "NaN or infinity in blocks.2.mlp.fc1.bias" in refusal(spoiled, tmp_path)


def test_quantised_weights_are_refused_by_name(tiny: Tensors, tmp_path: Path) -> None:
    said = refusal({**tiny, "norm.weight": tiny["norm.weight"].to(torch.float8_e4m3fn)}, tmp_path)
    assert "holds weights quantised to 8 bits (norm.weight)" in said


def test_a_file_with_two_encoders_is_refused(tiny: Tensors, tmp_path: Path) -> None:
    two = {f"{task}.{name}": value.clone() for task in ("depth", "normals") for name, value in tiny.items()}
    assert "2 encoders" in refusal(two, tmp_path)


def test_a_file_cut_short_is_refused(tiny: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(safetensors.torch.save(tiny)[:-100])
    with pytest.raises(SimoError, match="cut short"):
        load_base(TINY, path)
    torch.save(tiny, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-1000])
    with pytest.raises(SimoError, match=r"cut\.pth"):
        load_base(TINY, tmp_path / "cut.pth")


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("pytest.fail('code of the file was run')",)


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_a_pickle_with_code_is_refused_and_not_run(save: object, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    save({"patch_embed.proj.weight": Code()}, path)
    with pytest.raises(SimoError, match="run its code"):
        load_base(TINY, path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.pth", None, "No weights file"),
        ("w.npz", b"x", r"'\.npz'"),
        ("empty.pth", b"", "empty.pth"),
        ("folder", None, "neither a file nor one of the words timm, package, random"),
    ],
)
def test_what_is_no_weights_file_is_refused(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SimoError, match=words):
        load_base(TINY, tmp_path / name)


def test_a_pickle_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / "w.pt")
    with pytest.raises(SimoError, match="no tensors"):
        load_base(TINY, tmp_path / "w.pt")
    torch.save([torch.ones(1)], tmp_path / "w.pt")
    with pytest.raises(SimoError, match="holds a list"):
        load_base(TINY, tmp_path / "w.pt")
