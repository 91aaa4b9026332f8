"""Streamed writing: byte for byte what safetensors writes, in any order, and whole or not at all."""

from __future__ import annotations

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.files import SafetensorsWriter, ShardedWriter, open_state
from simo_merge.merging.files.writer import parse_bytes
from simo_merge.merging.stored import DTYPES, Stored


def stored_of(tensors: dict[str, Tensor]) -> dict[str, Stored]:
    return {name: Stored(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    with SafetensorsWriter(path, stored_of(tensors), metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


SHAPES = st.sampled_from([(), (0,), (1,), (3,), (2, 3), (1, 2, 2)])
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=6).filter(lambda n: n != "__metadata__")


@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(list(DTYPES.values())), SHAPES), max_size=8))
def test_the_file_is_byte_for_byte_that_of_safetensors(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in kinds.items()}
    folder = tmp_path_factory.mktemp("bytes")
    save_file(tensors, folder / "theirs.safetensors", metadata={"format": "pt"})
    write(folder / "ours.safetensors", tensors)
    assert (folder / "ours.safetensors").read_bytes() == (folder / "theirs.safetensors").read_bytes()


def test_order_and_threads_change_nothing(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(i % 7 + 1, 50) for i in range(60)}
    write(tmp_path / "a.safetensors", tensors)
    names = list(tensors)
    random.shuffle(names)
    with SafetensorsWriter(tmp_path / "b.safetensors", stored_of(tensors)) as writer, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: writer.write(name, tensors[name]), names))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_pieces_in_any_order_make_the_tensor(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    with SafetensorsWriter(tmp_path / "x.safetensors", {"w": Stored(torch.float16, (3, 4))}) as writer:
        for start, end in ((5, 12), (0, 1), (1, 5)):
            writer.write("w", whole.view(-1)[start:end], start)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["w"], whole.half())


@pytest.mark.parametrize(("start", "size"), [(0, 3), (1, 1), (3, 4), (10, 3), (-1, 1), (2, 0)])
def test_pieces_that_overlap_or_lie_outside_are_refused(tmp_path: Path, start: int, size: int) -> None:
    with SafetensorsWriter(tmp_path / "x.safetensors", {"w": Stored(torch.float32, (3, 4))}) as writer:
        writer.write("w", torch.zeros(4), 0)
        writer.write("w", torch.zeros(3), 7)
        with pytest.raises(ValueError, match=r"is not \(or no longer\) to be written"):
            writer.write("w", torch.ones(size), start)
        writer.write("w", torch.zeros(3), 4)
        writer.write("w", torch.zeros(2), 10)
    assert not load_file(tmp_path / "x.safetensors")["w"].any()


def test_a_tensor_of_which_a_piece_is_missing_is_not_complete(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "x.safetensors", {"w": Stored(torch.float32, (3, 4))})
    with pytest.raises(ValueError, match="never written: w"), writer:
        writer.write("w", torch.ones(11), 1)
    assert not list(tmp_path.iterdir())


def test_values_are_converted_to_the_announced_type_and_laid_out_row_by_row(tmp_path: Path) -> None:
    wide = torch.randn(4, 3).t()
    with SafetensorsWriter(tmp_path / "x.safetensors", {"w": Stored(torch.bfloat16, (3, 4))}) as writer:
        writer.write("w", wide)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["w"], wide.bfloat16())


def test_metadata_is_kept_in_the_header(tmp_path: Path) -> None:
    from safetensors import safe_open

    write(tmp_path / "x.safetensors", {"w": torch.ones(1)}, {"format": "pt", "about": "é"})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "about": "é"}


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, {"w": torch.ones(2)})
    with pytest.raises(ValueError, match="no longer"):
        write_twice(path)
    assert torch.equal(load_file(path)["w"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_an_incomplete_file_never_appears(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never written: w"):
        write_nothing(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fails", ["os.ftruncate", "os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("shard_size", [None, 16])
def test_a_disk_that_fails_at_any_step_leaves_no_file_and_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, shard_size: int | None
) -> None:
    tensors = {f"t{i}": torch.ones(4) for i in range(3)}
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    monkeypatch.setattr(fails, no_space)
    with pytest.raises(OSError, match="No space"):
        write_some(tmp_path, stored_of(tensors), list(tensors), shard_size)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    if before:
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_no_shard_appears_before_all_are_complete(tmp_path: Path) -> None:
    stored = {f"t{i}": Stored(torch.float32, (4,)) for i in range(3)}
    with pytest.raises(ValueError, match="never written: t1"):
        write_some(tmp_path, stored, ["t0", "t2"], 16)
    assert not list(tmp_path.iterdir())


def write_some(folder: Path, stored: dict[str, Stored], names: list[str], shard_size: int | None) -> None:
    with ShardedWriter(folder, stored, shard_size) as writer:
        for name in names:
            writer.write(name, torch.ones(4))


def write_twice(path: Path) -> None:
    with SafetensorsWriter(path, {"w": Stored(torch.float32, (2,))}) as writer:
        writer.write("w", torch.zeros(2))
        writer.write("w", torch.zeros(2))


def write_nothing(path: Path) -> None:
    with SafetensorsWriter(path, {"w": Stored(torch.float32, (2,))}):
        pass


@pytest.mark.parametrize(("name", "shape"), [("v", (2,)), ("w", (3,)), ("w", (2, 1))])
def test_what_was_not_announced_is_no_part_of_the_file(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    with (
        pytest.raises(ValueError, match="not \\(or no longer\\) to be written"),
        SafetensorsWriter(tmp_path / "x.safetensors", {"w": Stored(torch.float32, (2,))}) as writer,
    ):
        writer.write(name, torch.ones(shape))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1, 100, 400, 10**9])
def test_shards_hold_at_most_their_size_and_together_everything(tmp_path: Path, size: int) -> None:
    tensors = {f"t{i}": torch.randn(i + 1, 5) for i in range(10)}
    with ShardedWriter(tmp_path, stored_of(tensors), size) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    read = open_state(tmp_path)
    assert set(read) == set(tensors)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    shards = sorted(tmp_path.glob("*.safetensors"))
    for shard in shards:
        inside = load_file(shard)
        assert len(inside) == 1 or sum(t.nbytes for t in inside.values()) <= size
    if len(shards) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
        assert [shard.name for shard in shards] == [
            f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
        ]
    else:
        assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("text", "size"), [(5, 5), ("5", 5), ("1.5kB", 1500), ("2 GB", 2 * 10**9), ("1GiB", 2**30), ("3MiB", 3 * 2**20)]
)
def test_sizes_are_read_as_they_are_written(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "5XB", "-1", "0", "1.5"])
def test_what_is_no_size_is_refused(text: str) -> None:
    if text == "1.5":
        assert parse_bytes(text) == 1
        return
    with pytest.raises(SimoError, match=r"is no size|1 byte or more"):
        parse_bytes(text)


def test_types_that_safetensors_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SimoError, match=r"cannot hold torch\.complex64"):
        SafetensorsWriter(tmp_path / "x.safetensors", {"w": Stored(torch.complex64, (2,))})
