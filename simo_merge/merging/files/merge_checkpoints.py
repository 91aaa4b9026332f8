"""Merging checkpoints of experts into a checkpoint, without holding their models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simo_merge.checkpoints import load_expert, written_directory
from simo_merge.checkpoints.card import model_card
from simo_merge.checkpoints.config import BaseConfig, CheckpointConfig, EncoderConfig, MergeConfig
from simo_merge.errors import SimoError
from simo_merge.merging.checks import ExpertFacts, check_base, check_experts, shared_image_size
from simo_merge.merging.duplicates import warn_of_duplicates
from simo_merge.merging.files.lazy_state import CHECKPOINT_PREFIX, LazyState, open_tensors
from simo_merge.merging.files.writer import SafetensorsWriter
from simo_merge.merging.grids import Size, grid_for, image_size_of
from simo_merge.merging.merge import encoder_labels, find_base
from simo_merge.merging.method import DataMergeMethod, MergeMethod, TaskSpecificMethod, merges_by_entry
from simo_merge.merging.parameter import Parameter
from simo_merge.merging.passes import Sources, kept_threads
from simo_merge.merging.positions import POSITIONS, ResampledPositions
from simo_merge.merging.states import gather_statistics, merge_parameter
from simo_merge.merging.stored import Stored
from simo_merge.tasks import Task
from simo_merge.weights import Base, fingerprint, load_base


@dataclass(frozen=True)
class StoredExpert:
    """An expert that stays on the disk: what it is, and its tensors to read.

    sha256: fingerprint of all its tensors. tensors: by their names in the checkpoint.
    """

    path: str
    facts: ExpertFacts
    task: Task
    decoder: Mapping[str, Any]
    sha256: str
    tensors: LazyState

    @property
    def vit(self) -> LazyState:
        """The tensors of the encoder's ViT, in timm's names."""
        return self.tensors.under(CHECKPOINT_PREFIX)


def merge_checkpoints(
    experts: Sequence[str | Path],
    method: MergeMethod,
    output: str | Path,
    base: Base | Callable[[str, Size | None], Base] | None = None,
    overwrite: bool = False,
    resample_pos_embed: bool = False,
) -> Path:
    """Merge checkpoints; what is written is what `save(merge(experts, ...))` writes, byte for byte.

    Every expert is loaded and checked by itself first; then the encoders are merged parameter by parameter. Peak memory
    is one expert and the base.

    Args:
        experts: directories of two or more experts.
        method: how they are combined; one that learns from images needs the models (`merge`).
        output: the directory to write.
        base: the base weights, or what loads them, given the encoder's name and image size; default: as the experts
            record.
        overwrite: whether the output is replaced if it exists.
        resample_pos_embed: as for `merge`.

    Raises:
        SimoError: as `load_expert` and `merge`, or a method that learns from images.
    """
    if isinstance(method, DataMergeMethod):
        raise SimoError(f"{method.name} learns from images, so checkpoints alone are not enough; merge the models")
    opened = [_opened(path) for path in experts]
    facts = [expert.facts for expert in opened]
    check_experts(facts, resample_pos_embed)
    given = base if base is None or isinstance(base, Base) else base(facts[0].encoder, shared_image_size(facts))
    found = given or find_base(facts)
    check_base(found, facts, resample_pos_embed)
    origin, labels = found.vit.state_dict(), encoder_labels([fact.task for fact in facts])
    states = [_on_grid_of(found, expert, label) for expert, label in zip(opened, labels[1:], strict=True)]
    warn_of_duplicates(origin, states, labels)
    sources = Sources(origin, states, labels, streams=True, by_entry=merges_by_entry(method))
    own = isinstance(method, TaskSpecificMethod)
    with kept_threads(), torch.no_grad():
        statistics = gather_statistics(sources, method)
        with written_directory(output, overwrite) as directory:
            file = directory / "model.safetensors"
            _write_tensors(file, opened, sources, method, statistics)
            config = _config(opened, found, method, statistics, own, fingerprint(open_tensors(file)))
            (directory / "config.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
            (directory / "README.md").write_text(model_card(config), encoding="utf-8")
    return Path(output)


def load_base_from(source: str) -> Callable[[str, Size | None], Base]:
    """What loads the base weights of a source (`load_base`) for an encoder's name and image size."""
    return lambda name, image_size: load_base(name, source, image_size)


def _opened(path: str | Path) -> StoredExpert:
    """Load an expert to check it, and keep what it is."""
    model = load_expert(path)
    return StoredExpert(
        str(path),
        ExpertFacts.of(model),
        model.task,
        model.decoder.config,
        fingerprint(model.state_dict()),
        open_tensors(Path(path) / "model.safetensors"),
    )


def _on_grid_of(base: Base, expert: StoredExpert, label: str) -> Mapping[str, Tensor]:
    """The tensors of an expert's ViT, with position embeddings of the base's grid."""
    size, wanted = expert.facts.grid_size, image_size_of(base.vit)
    if size == wanted or POSITIONS not in expert.vit:
        return expert.vit
    old, new = grid_for(expert.vit, size, label), grid_for(base.vit.state_dict(), wanted, "the base")
    return ResampledPositions(expert.vit, old, new, label)


def _write_tensors(
    file: Path, experts: Sequence[StoredExpert], sources: Sources, method: MergeMethod, statistics: Any
) -> None:
    prefixes = [CHECKPOINT_PREFIX]
    if isinstance(method, TaskSpecificMethod):
        prefixes += [f"task_encoders.{expert.task.name}.vit." for expert in experts]
    decoders = {
        f"decoders.{expert.task.name}.{name}": tensor
        for expert in experts
        for name, tensor in expert.tensors.under("decoder.").items()
    }
    tensors = {f"{prefix}{name}": tensor for prefix in prefixes for name, tensor in sources.base.items()}
    with SafetensorsWriter(file, {name: _kept(tensor) for name, tensor in (tensors | decoders).items()}) as writer:

        def merge_one(parameter: Parameter) -> None:
            found = merge_parameter(parameter, method, statistics)
            for prefix, tensor in zip(prefixes, (found.shared, *found.by_expert), strict=True):
                writer.write(f"{prefix}{parameter.name}", tensor, parameter.start)

        for _ in sources.map(merge_one, "merging"):
            pass
        unmerged = sources.unmerged()
        rest = {f"{prefix}{name}": tensor for prefix in prefixes for name, tensor in unmerged.items()}
        for name, tensor in (rest | decoders).items():
            writer.write(name, tensor)


def _kept(tensor: Tensor) -> Stored:
    """Type and shape in the checkpoint: models compute in float32, whatever their experts were stored in."""
    return Stored(torch.float32 if tensor.is_floating_point() else tensor.dtype, tuple(tensor.shape))


def _config(
    experts: Sequence[StoredExpert], base: Base, method: MergeMethod, statistics: Any, own: bool, sha256: str
) -> CheckpointConfig:
    first = experts[0].facts
    size = image_size_of(base.vit) if POSITIONS in experts[0].vit else first.grid_size
    return CheckpointConfig(
        kind="multi-task",
        encoder=EncoderConfig(name=first.encoder, taps=list(first.taps), image_size=size),
        base=BaseConfig(name=base.name, source=base.source, sha256=base.sha256),
        tasks=[expert.task.model_dump(mode="json") for expert in experts],
        decoders={expert.task.name: dict(expert.decoder) for expert in experts},
        task_encoders=own,
        merge=MergeConfig(
            method=method.name,
            parameters=method.record(statistics),
            experts={expert.task.name: {"path": expert.path, "sha256": expert.sha256} for expert in experts},
        ),
        sha256=sha256,
    )
