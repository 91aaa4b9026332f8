"""Merging weights from files to files, with memory for a few tensors."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from simo_merge.device import resolve_device
from simo_merge.errors import SimoError
from simo_merge.merging.duplicates import warn_of_duplicates
from simo_merge.merging.elementwise.linear import PreferenceSoup, WeightAverage
from simo_merge.merging.files.check_states import check_states, warn_of_integers, warn_of_strangers
from simo_merge.merging.files.file_grids import on_base_grid
from simo_merge.merging.files.lazy_state import INDEX, LazyState, open_state
from simo_merge.merging.files.writer import SafetensorsWriter, ShardedWriter, parse_bytes
from simo_merge.merging.method import DataMergeMethod, MergeMethod, TaskSpecificMethod, merges_by_entry
from simo_merge.merging.parameter import Parameter
from simo_merge.merging.passes import WORKERS, Sources, kept_threads
from simo_merge.merging.states import gather_statistics, merge_parameter
from simo_merge.merging.stored import Stored, stored_in
from simo_merge.weights.pickles import PICKLES

Writer = SafetensorsWriter | ShardedWriter
OUTPUT_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def merge_files(
    base: str | Path | Mapping[str, Tensor],
    experts: Sequence[str | Path | Mapping[str, Tensor]],
    method: MergeMethod,
    output: str | Path,
    *,
    dtype: str | None = None,
    shard_size: str | int | None = None,
    skip: Sequence[str] = (),
    resample_pos_embed: bool = False,
    pos_embed_grids: Sequence[tuple[int, int]] = (),
    device: str | torch.device | None = "cpu",
    workers: int = WORKERS,
    overwrite: bool = False,
) -> Path:
    """Merge weights tensor by tensor, from wherever they lie into safetensors.

    The result is bit for bit that of `merge_states`. Nothing is left behind where the merge fails.

    Args:
        base: what `open_state` takes, or tensors by name.
        experts: the same, two or more.
        method: how they are combined; one that learns from images needs models (`merge`).
        output: a file `x.safetensors`, or a directory: `model.safetensors`, or shards and their index. A task-specific
            method writes a directory, with a directory for each expert's own weights in `tasks/`. A directory that is
            replaced must hold none of the weights that are read.
        dtype: of the output's floating-point tensors, one of `OUTPUT_DTYPES`; default: as the base's. Sums are in
            float32, or in float64 where the base is.
        shard_size: most bytes of a shard, a number or a text like `2GB`; default: one file.
        skip: patterns (`head.*`) of names that are neither merged nor written.
        resample_pos_embed: whether position embeddings of another image size are resampled to the base's grid.
        pos_embed_grids: (rows, columns) of patches of such grids as neither a checkpoint records nor are square.
        device: where to compute.
        workers: how many parameters may be in memory at a time; a method that works by entry needs but one.
        overwrite: whether an output that exists is replaced.

    Returns:
        The path of the output.

    Raises:
        SimoError: files that cannot be read or do not belong together, NaN or infinity, values that the type of the
            output cannot hold, an output that exists.
    """
    output = Path(output)
    if isinstance(method, DataMergeMethod):
        raise SimoError(f"{method.name} learns from images, so weights alone are not enough; merge checkpoints (merge)")
    paths = [given if isinstance(given, str | Path) else None for given in (base, *experts)]
    _check_output(output, method, shard_size, overwrite, paths)
    labels = _labels(paths)
    own = _own_names(labels[1:]) if isinstance(method, TaskSpecificMethod) else []
    whole = [open_state(given) if isinstance(given, str | Path) else given for given in (base, *experts)]
    states = [_without(state, skip) for state in whole]
    states = on_base_grid(states, paths, labels, resample_pos_embed, pos_embed_grids)
    mean_of_all = isinstance(method, WeightAverage | PreferenceSoup) and paths[0] is not None and paths[0] in paths[1:]
    _check(states, None if mean_of_all else whole[0], labels)
    sources = Sources(states[0], states[1:], labels, resolve_device(device), workers, True, merges_by_entry(method))
    written = {name: _output_type(stored_in(states[0], name), dtype) for name in states[0]}
    with kept_threads(), torch.no_grad(), ExitStack() as stack:
        statistics = gather_statistics(sources, method)
        metadata = _metadata(method, method.record(statistics), labels)
        writers = stack.enter_context(_writers(output, written, metadata, shard_size, overwrite, own))

        def merge_one(parameter: Parameter) -> None:
            found = merge_parameter(parameter, method, statistics)
            for writer, tensor in zip(writers, (found.shared, *found.by_expert), strict=True):
                writer.write(parameter.name, tensor, parameter.start)

        for _ in sources.map(merge_one, "merging"):
            pass
        for name, tensor in sources.unmerged().items():
            for writer in writers:
                writer.write(name, tensor)
    return output


def _check(
    states: Sequence[Mapping[str, Tensor]], whole_base: Mapping[str, Tensor] | None, labels: Sequence[str]
) -> None:
    """Refuse what does not belong together; no base where an expert stands in for it, as in a mean it may."""
    base, experts = states[0], states[1:]
    check_states(base, experts, labels)
    _check_recorded(None if whole_base is None else (whole_base, base), experts, labels)
    warn_of_integers(base, experts, labels)
    warn_of_strangers(base, experts, labels)
    warn_of_duplicates(base, experts, labels)


def _check_recorded(
    bases: Sequence[Mapping[str, Tensor]] | None, experts: Sequence[Mapping[str, Tensor]], labels: Sequence[str]
) -> None:
    """Refuse experts that record different bases, or another than the one given, if one is.

    An expert may have begun from all tensors of the base or from those that are merged: either of `bases` will do.
    """
    recorded = {
        label: state.base_sha256
        for state, label in zip(experts, labels[1:], strict=True)
        if isinstance(state, LazyState) and state.base_sha256 is not None
    }
    if len(set(recorded.values())) > 1:
        told = ", ".join(f"{label} from {sha256[:12]}" for label, sha256 in recorded.items())
        raise SimoError(
            f"the experts come from different bases: {told}. Task vectors of different bases cannot be added; "
            "fine-tune all from one"
        )
    if recorded and bases is not None:
        from simo_merge.weights import fingerprint  # here: other merges need nothing of timm

        label, sha256 = next(iter(recorded.items()))
        if all(fingerprint(base) != sha256 for base in bases):
            given = fingerprint(bases[0])
            raise SimoError(
                f"{labels[0]} ({given[:12]}) is not the base that {label} came from ({sha256[:12]}); give the weights "
                "that the experts were fine-tuned from"
            )


def _check_output(
    output: Path,
    method: MergeMethod,
    shard_size: str | int | None,
    overwrite: bool,
    inputs: Sequence[str | Path | None],
) -> None:
    if shard_size is not None:
        parse_bytes(shard_size)
    if output.suffix in PICKLES:
        raise SimoError(f"{output} would be a pickle; what is written is .safetensors, or a directory")
    if output.suffix != ".safetensors":
        from simo_merge.checkpoints.files import prepare_output  # here: the checkpoints' room takes seconds to import

        for given in inputs:  # a file that is replaced is read before it goes; a directory takes all in it along
            if overwrite and given is not None and Path(given).resolve().is_relative_to(output.resolve()):
                raise SimoError(f"writing {output} would delete {given}, which is to be merged; choose another output")
        prepare_output(output, overwrite)
        return
    if shard_size is not None or isinstance(method, TaskSpecificMethod):
        several = "shards" if shard_size is not None else f"{method.name} gives every task weights of its own, which"
        raise SimoError(f"{several} need a directory, and {output} is the name of one file; give a directory")
    if output.is_dir():
        raise SimoError(f"{output} is a directory; give the name of a file to write")
    if output.exists() and not overwrite:
        raise SimoError(f"{output} exists; choose another name or pass --overwrite")


def _output_type(stored: Stored, dtype: str | None) -> Stored:
    if dtype is not None and dtype not in OUTPUT_DTYPES:
        raise SimoError(f"unknown output type {dtype!r}; known: {', '.join(OUTPUT_DTYPES)}")
    return stored if dtype is None or not stored.is_float else Stored(OUTPUT_DTYPES[dtype], stored.shape)


@contextmanager
def _writers(
    output: Path,
    tensors: Mapping[str, Stored],
    metadata: Mapping[str, str],
    shard_size: str | int | None,
    overwrite: bool,
    own: Sequence[str],
) -> Iterator[list[Writer]]:
    """The writer of the shared weights, then those of each expert's own, in directories of these names."""
    with ExitStack() as stack:
        if output.suffix == ".safetensors":
            output.parent.mkdir(parents=True, exist_ok=True)
            yield [stack.enter_context(SafetensorsWriter(output, tensors, metadata))]
            return
        from simo_merge.checkpoints.files import written_directory

        whole: AbstractContextManager[Path] = written_directory(output, overwrite)
        directory = stack.enter_context(whole)
        places = [directory, *(directory / "tasks" / name for name in own)]
        size = None if shard_size is None else parse_bytes(shard_size)
        writers: list[Writer] = []
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            writers.append(stack.enter_context(ShardedWriter(place, tensors, size, metadata)))
        yield writers


def _labels(paths: Sequence[str | Path | None]) -> list[str]:
    """What to call base and experts: their paths where they have one."""
    unnamed = ["the base", *(f"expert {i}" for i in range(1, len(paths)))]
    return [name if path is None else str(path) for path, name in zip(paths, unnamed, strict=True)]


def _own_names(labels: Sequence[str]) -> list[str]:
    """Names of the directories for each expert's own weights: those of its files, or of the folders that tell more.

    Raises:
        SimoError: two experts of one name.
    """
    names = [_own_name(label) for label in labels]
    twice = [label for label, name in zip(labels, names, strict=True) if names.count(name) > 1]
    if twice:
        raise SimoError(
            f"each expert's own weights are written under its name, and {', '.join(twice)} do not differ in theirs; "
            "give each expert once, in files of different names"
        )
    return names


def _own_name(label: str) -> str:
    path = Path(os.path.abspath(label))  # noqa: PTH100  # not resolve(): a link's name tells more than its target's
    ending = next((ending for ending in (INDEX, ".safetensors", *PICKLES) if path.name.endswith(ending)), "")
    name = path.name.removesuffix(ending)
    return path.parent.name if ending and name in ("model", "pytorch_model") else name


def _without(state: Mapping[str, Tensor], skip: Sequence[str]) -> Mapping[str, Tensor]:
    kept = [name for name in state if not any(fnmatch.fnmatchcase(name, pattern) for pattern in skip)]
    if len(kept) == len(state):
        return state
    return state.only(kept) if isinstance(state, LazyState) else {name: state[name] for name in kept}


def _metadata(method: MergeMethod, options: Mapping[str, object], labels: Sequence[str]) -> dict[str, str]:
    """What the header of the output says of the merge."""
    record = {
        "method": method.name,
        "parameters": dict(options),
        "base": Path(labels[0]).name,
        "experts": [Path(label).name for label in labels[1:]],
    }
    return {"format": "pt", "simo_merge": json.dumps(record)}
