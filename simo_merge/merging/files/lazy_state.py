"""A state dict whose tensors stay in their files until they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.files.tensor_files import PickleFile, SafetensorsFile, TensorFile
from simo_merge.merging.memory import Memory
from simo_merge.merging.stored import Stored
from simo_merge.weights.pickles import PICKLES

INDEX = ".safetensors.index.json"
# Where each kind of directory keeps the encoder: our checkpoints, and smp's `save_pretrained`.
CHECKPOINT_PREFIX = "encoder.vit."
SMP_PREFIX = "encoder.model."
SMP_LEFT_OUT = ("head.", "head_dist.")  # timm's classifier, which smp keeps and never uses
WRAPPER_PREFIX = "module."  # DistributedDataParallel puts it before every name


class LazyState(Mapping[str, Tensor]):
    """The tensors of one or more files by name; each is read when it is asked for, and not kept.

    Reading maps the file into memory, so tensors cost no private memory until they are changed or converted. Safe to
    read from several threads.

    Args:
        places: for each name, the file and the tensor's name in that file.
        origin: what to call it in messages.
        base_sha256: fingerprint of the base weights, where the files record it.
    """

    def __init__(
        self, places: Mapping[str, tuple[TensorFile, str]], origin: str, base_sha256: str | None = None
    ) -> None:
        self._places = dict(places)
        self.origin = origin
        self.base_sha256 = base_sha256

    def __getitem__(self, name: str) -> Tensor:
        file, inside = self._places[name]
        return file.map(inside)

    def read(self, name: str, memory: Memory, span: slice | None = None) -> Tensor:
        """One tensor, or a span of it flattened, read into memory that may have been used before."""
        file, inside = self._places[name]
        return file.read(inside, memory, span)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._places

    def stored(self, name: str) -> Stored:
        """Type and shape of one tensor, without reading it."""
        file, inside = self._places[name]
        return file.stored(inside)

    def only(self, names: Iterable[str]) -> LazyState:
        """Those tensors alone."""
        return LazyState({name: self._places[name] for name in names}, self.origin, self.base_sha256)

    def under(self, prefix: str, left_out: tuple[str, ...] = ()) -> LazyState:
        """Those tensors whose names begin with `prefix`, by the rest of their names."""
        kept = {
            name.removeprefix(prefix): place
            for name, place in self._places.items()
            if name.startswith(prefix) and not name.removeprefix(prefix).startswith(left_out or "\0")
        }
        return LazyState(kept, self.origin, self.base_sha256)


def open_state(path: str | Path, task: str | None = None) -> LazyState:
    """Open a state dict without reading its tensors.

    | given | tensors |
    | --- | --- |
    | `x.safetensors` | all, as they are named |
    | `x.safetensors.index.json`, or a directory with one | of all its shards |
    | `x.pth`, `x.pt`, `x.bin` | of the state dict inside; no code of it is run |
    | a checkpoint of this package | of its encoder (or of the task's own), in timm's names |
    | a directory of smp's `save_pretrained` | of its encoder, in timm's names, without classifier |
    | a directory with `model.safetensors` or `pytorch_model.bin` | all |

    A `module.` before every name, which DistributedDataParallel puts there, is left out.

    Args:
        path: the file or directory.
        task: whose encoder, for a checkpoint in which every task has an encoder of its own.

    Raises:
        SimoError: nothing there, another kind of file, or a damaged one; a task where there is one encoder, or none
            where every task has its own.
    """
    path = Path(path)
    if path.is_dir():
        return _open_directory(path, task)
    _refuse_task(path, task)
    if not path.is_file():
        raise SimoError(
            f"{path} does not exist; give a .safetensors file, its index, a {', '.join(PICKLES)} file or a checkpoint"
        )
    return _open_file(path)


def open_tensors(path: str | Path) -> LazyState:
    """All tensors of a `.safetensors` file.

    Raises:
        SimoError: it is missing, damaged or truncated.
    """
    return _whole(SafetensorsFile(Path(path)), Path(path))


def _open_file(path: Path) -> LazyState:
    state = _named_as_stored(path)
    return state.under(WRAPPER_PREFIX) if all(name.startswith(WRAPPER_PREFIX) for name in state) else state


def _named_as_stored(path: Path) -> LazyState:
    if path.name.endswith(INDEX):
        return _open_shards(path)
    if path.suffix == ".safetensors":
        return _whole(SafetensorsFile(path), path)
    if path.suffix in PICKLES:
        return _whole(PickleFile(path), path)
    raise SimoError(f"{path} ends in {path.suffix!r}; expected .safetensors, {INDEX}, {', '.join(PICKLES)}")


def _whole(file: TensorFile, path: Path) -> LazyState:
    return LazyState({name: (file, name) for name in file.names()}, str(path))


def _open_directory(path: Path, task: str | None) -> LazyState:
    indices = sorted(path.glob(f"*{INDEX}"))
    candidates = [*indices, path / "model.safetensors", path / "pytorch_model.bin"]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise SimoError(
            f"{path} holds no weights: expected model.safetensors, its index or pytorch_model.bin there; give the file"
        )
    state = _open_file(file)
    state.origin = str(path)
    config = _read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if config.get("format") == "simo_merge":
        state.base_sha256 = (config.get("base") or {}).get("sha256")
        own = [entry["name"] for entry in config.get("tasks", [])] if config.get("task_encoders") else []
        return _encoder(state, _own_prefix(path, own, task))
    _refuse_task(path, task)
    if "_model_class" in config:
        return _encoder(state, SMP_PREFIX, SMP_LEFT_OUT)
    return state


def _own_prefix(path: Path, own: list[str], task: str | None) -> str:
    """Where a checkpoint keeps the encoder, or the task's."""
    if not own:
        _refuse_task(path, task)
        return CHECKPOINT_PREFIX
    if task not in own:
        seen = "none was named" if task is None else f"{task} is none of them"
        raise SimoError(
            f"{path} has an encoder of its own for each of {', '.join(own)}, and {seen}; "
            "write one of them with simo-merge export --task NAME"
        )
    return f"task_encoders.{task}.vit."


def _refuse_task(path: Path, task: str | None) -> None:
    if task is not None:
        raise SimoError(f"{path} has no encoder for {task} alone; leave the task out")


def _encoder(state: LazyState, prefix: str, left_out: tuple[str, ...] = ()) -> LazyState:
    encoder = state.under(prefix, left_out)
    if not encoder:
        raise SimoError(f"{state.origin} holds no encoder: none of its tensors is named {prefix}*")
    return encoder


def _open_shards(index: Path) -> LazyState:
    named = _read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise SimoError(f"{index} is no index of shards: it has no weight_map; give the shards' index or one file")
    missing = sorted({str(shard) for shard in named.values() if not (index.parent / str(shard)).is_file()})
    if missing:
        raise SimoError(f"{index} lists shards that are not beside it: {', '.join(missing)}; download them too")
    files = {shard: SafetensorsFile(index.parent / str(shard)) for shard in sorted(set(named.values()))}
    places: dict[str, tuple[TensorFile, str]] = {}
    for shard, file in files.items():
        places |= {name: (file, name) for name in file.names() if named.get(name) == shard}
    absent = sorted(set(named) - set(places))
    if absent:
        raise SimoError(f"{index} lists tensors that its shards do not hold: {', '.join(absent[:3])}; download again")
    return LazyState(places, str(index))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SimoError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise SimoError(f"{path} is damaged: expected a JSON object, got {type(content).__name__}")
    return content
