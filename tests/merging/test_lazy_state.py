"""Lazy states: every kind of file gives the tensors that were written, and headers alone tell types and shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from simo_merge.checkpoints import save
from simo_merge.errors import SimoError
from simo_merge.merging.files import LazyState, open_state
from simo_merge.merging.memory import Memory
from simo_merge.merging.stored import Stored
from tests.named import named_expert
from tests.tiny import DEPTH, tiny_base

TENSORS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "a.half": torch.arange(3.0).half(),
    "b.brain": torch.tensor(2.5).bfloat16(),
    "steps": torch.tensor(7),
    "empty": torch.zeros(0, 4),
}


def same(state: LazyState, expected: dict[str, Tensor]) -> bool:
    return set(state) == set(expected) and all(
        torch.equal(state[name], tensor)
        and state.stored(name) == Stored(tensor.dtype, tuple(tensor.shape))
        and state[name].dtype == tensor.dtype
        for name, tensor in expected.items()
    )


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    names = sorted(tensors)
    places = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(places.values()):
        save_file({n: tensors[n] for n in names if places[n] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_a_safetensors_file_gives_what_was_saved(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert same(open_state(tmp_path / "x.safetensors"), TENSORS)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_tensors_and_spans_are_read_into_memory_as_they_are_mapped(tmp_path: Path, name: str) -> None:
    (torch.save if name == "x.pth" else save_file)(TENSORS, tmp_path / name)
    state, memory = open_state(tmp_path / name), Memory()
    for key, tensor in TENSORS.items():
        found = state.read(key, memory)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    assert state.read("a.weight", memory, slice(2, 5)).tolist() == [2.0, 3.0, 4.0]
    assert state.read("a.half", memory, slice(1, 3)).tolist() == [1.0, 2.0]


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    state = open_state(tmp_path / "x.safetensors")
    size = (tmp_path / "x.safetensors").stat().st_size
    with (tmp_path / "x.safetensors").open("r+b") as file:
        file.truncate(size - 50)
    with pytest.raises(SimoError, match="became shorter while it was read"):
        [state.read(name, Memory()) for name in state]


def test_shards_are_one_state_by_index_or_by_directory(tmp_path: Path) -> None:
    index = write_shards(tmp_path / "shards", TENSORS)
    assert same(open_state(index), TENSORS)
    assert same(open_state(tmp_path / "shards"), TENSORS)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_gives_what_was_saved_from_inside_its_wrapper(
    tmp_path: Path, wrapper: str | None, zipped: bool
) -> None:
    content = TENSORS if wrapper is None else {wrapper: TENSORS, "epoch": 3}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert same(open_state(tmp_path / "x.pth"), TENSORS)


def test_a_checkpoint_gives_its_encoder_in_timms_names_and_its_base(tmp_path: Path) -> None:
    expert = named_expert()
    save(expert, tmp_path / "expert")
    state = open_state(tmp_path / "expert")
    assert same(state, dict(expert.encoder.vit.state_dict()))
    assert expert.base is not None
    assert state.base_sha256 == expert.base.sha256


def test_a_directory_of_smp_gives_its_encoder_without_classifier(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp

    model = smp.DPT("tu-vit_tiny_patch16_224", encoder_weights=None, decoder_intermediate_channels=(8,) * 4)
    model.save_pretrained(str(tmp_path / "smp"))
    vit = {k: v for k, v in model.encoder.model.state_dict().items() if not k.startswith(("head.", "head_dist."))}
    assert "blocks.0.attn.qkv.weight" in vit
    assert same(open_state(tmp_path / "smp"), vit)


def test_other_directories_give_the_weights_that_they_hold(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "vit"}')
    assert same(open_state(tmp_path), TENSORS)


def test_parts_of_a_state_are_states() -> None:
    vit = tiny_base().vit.state_dict()

    class File:
        def names(self) -> list[str]:
            return list(vit)

        def stored(self, name: str) -> Stored:
            return Stored(vit[name].dtype, tuple(vit[name].shape))

        def map(self, name: str) -> Tensor:
            return vit[name]

        def read(self, name: str, memory: Memory, span: slice | None = None) -> Tensor:
            return vit[name] if span is None else vit[name].reshape(-1)[span]

    state = LazyState({f"vit.{name}": (File(), name) for name in vit}, "tiny")
    assert same(state.under("vit."), dict(vit))
    assert list(state.under("vit.", ("blocks.", "norm."))) == [n for n in vit if not n.startswith(("blocks.", "norm."))]
    assert list(state.only(["vit.norm.bias"])) == ["vit.norm.bias"]
    assert "norm.bias" not in state


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_names_as_training_on_several_gpus_leaves_them_are_the_models(tmp_path: Path, name: str) -> None:
    write = torch.save if name == "x.pth" else save_file
    write({f"module.{key}": tensor for key, tensor in TENSORS.items()}, tmp_path / name)
    assert same(open_state(tmp_path / name), TENSORS)
    some = {"module.a": torch.ones(1), "b": torch.ones(2)}
    write(some, tmp_path / name)
    assert same(open_state(tmp_path / name), some)


def test_membership_reads_nothing(tmp_path: Path) -> None:
    class Unread:
        def names(self) -> list[str]:
            return ["w"]

        def stored(self, name: str) -> Stored:
            return Stored(torch.float32, (2,))

        def map(self, name: str) -> Tensor:
            raise AssertionError(name)

        def read(self, name: str, memory: Memory, span: slice | None = None) -> Tensor:
            raise AssertionError(name)

    state = LazyState({"w": (Unread(), "w")}, "unread")
    assert "w" in state
    assert state.stored("w").nbytes == 8


def test_what_cannot_be_read_is_refused_with_what_to_do(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(SimoError) as refusal:
            open_state(path)
        return str(refusal.value)

    assert "nowhere.safetensors does not exist; give" in said(tmp_path / "nowhere.safetensors")
    (tmp_path / "x.npz").write_bytes(b"")
    assert "'.npz'; expected .safetensors" in said(tmp_path / "x.npz")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    assert "cut.safetensors is not a readable safetensors file" in said(tmp_path / "cut.safetensors")
    save_file(TENSORS, tmp_path / "short.safetensors")
    whole = (tmp_path / "short.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[:-4])
    assert "may have been cut short" in said(tmp_path / "short.safetensors")
    (tmp_path / "empty").mkdir()
    assert "holds no weights" in said(tmp_path / "empty")
    torch.save({"fn": DEPTH}, tmp_path / "code.pth")
    assert "was not opened" in said(tmp_path / "code.pth")
    for text in ("hello world", "(((", "tttt", "\x80\x02q", "cos\nsystem\n"):
        (tmp_path / "text.pth").write_text(text, encoding="latin-1")
        assert "text.pth" in said(tmp_path / "text.pth")
    (tmp_path / "text.pth").write_text("hello world")
    assert "text.pth is not a readable torch file (its content is no pickle)" in said(tmp_path / "text.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    assert "holds no tensors" in said(tmp_path / "none.pth")
    index = write_shards(tmp_path / "shards", TENSORS)
    (tmp_path / "shards" / "model-00002-of-00002.safetensors").unlink()
    assert "not beside it: model-00002-of-00002.safetensors" in said(index)
    index.write_text("{}")
    assert "no weight_map" in said(index)
