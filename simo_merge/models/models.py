"""Single-task models (experts) and the multi-task model they are merged into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from simo_merge.errors import SimoError
from simo_merge.models.aligners import Aligner
from simo_merge.models.block_changes import BlockChanges
from simo_merge.models.branches import TaskEncoder, branching_passes, branching_taps, first_change
from simo_merge.models.decoders import Decoder
from simo_merge.models.encoder import Encoder, Taps
from simo_merge.tasks import Task


@dataclass(frozen=True)
class BaseRecord:
    """Which base weights an encoder was fine-tuned from.

    name: timm name. source: where the weights came from (`weights.Base.source`). sha256: their fingerprint.
    """

    name: str
    source: str
    sha256: str


class SingleTaskModel(nn.Module):
    """An encoder and the decoder of one task: an expert.

    Args:
        encoder: the fine-tuned encoder.
        decoder: the task's decoder.
        task: what it predicts.
        base: the base weights of the encoder; None when unknown (imported models).
        provenance: how the model came about (plain JSON values), kept in its checkpoint.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        task: Task,
        base: BaseRecord | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.task = task
        self.base = base
        self.provenance: dict[str, Any] = dict(provenance or {})

    @property
    def tasks(self) -> dict[str, Task]:
        """The one task, by name."""
        return {self.task.name: self.task}

    @property
    def encoder_passes(self) -> int:
        """Encoder passes for one image."""
        return 1

    def decode(self, taps: Taps, size: tuple[int, int]) -> Tensor:
        """Prediction (B, K, H, W) for images of `size` = (H, W) from the encoder's taps."""
        return _decode(self.encoder, self.decoder, self.task, taps, size)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> the task's prediction (B, K, H, W)."""
        return self.decode(self.encoder(images), (images.shape[-2], images.shape[-1]))


@dataclass(frozen=True)
class MergeRecord:
    """How a multi-task model was made, by a merge or by joint training: method, parameters, experts that went in.

    experts: for each task, {"path": ..., "sha256": fingerprint of the whole model}; the path is where the
    expert was loaded from, or None when it was never saved.
    images, labels: how many images the merge, or the choice of its options, looked at; how many of them with labels.
    """

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    experts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    alignment: Mapping[str, Any] | None = None
    images: int = 0
    labels: int = 0


class MultiTaskModel(nn.Module):
    """One encoder pass, then for each task its aligner (if any) and its decoder.

    Args:
        encoder: the merged encoder.
        decoders: a decoder for each task name.
        tasks: the tasks, by name.
        aligners: an aligner for any of the tasks.
        base: the base weights of the encoder.
        merge: how the model was made.
        task_encoders: an encoder of its own for every task, where the merge makes them (TALL-masks, EMR); they are
            then run instead of `encoder`, one pass a task.
        block_changes: what any of the tasks changes inside the shared encoder; from its first changed block on a task
            runs the blocks for itself, and those before are run once for all.
        provenance: how a model that was trained and not merged came about (plain JSON values), kept in its checkpoint.

    Raises:
        SimoError: decoders and tasks of different names, an aligner or block changes without their task, changes of
            blocks that no tap reads, or that come with an encoder for every task, or a task of a name that torch keeps
            for itself.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoders: Mapping[str, Decoder],
        tasks: Mapping[str, Task],
        aligners: Mapping[str, Aligner] | None = None,
        base: BaseRecord | None = None,
        merge: MergeRecord | None = None,
        task_encoders: Mapping[str, Encoder] | None = None,
        provenance: Mapping[str, Any] | None = None,
        block_changes: Mapping[str, BlockChanges] | None = None,
    ) -> None:
        super().__init__()
        if set(decoders) != set(tasks):
            raise SimoError(f"decoders for {sorted(decoders)} but tasks {sorted(tasks)}; give one decoder a task")
        unknown = set(aligners or {}) - set(tasks)
        if unknown:
            raise SimoError(f"aligners for unknown tasks {sorted(unknown)}; the tasks are {sorted(tasks)}")
        if task_encoders and set(task_encoders) != set(tasks):
            raise SimoError(
                f"encoders for {sorted(task_encoders)} but tasks {sorted(tasks)}; give every task one, or none"
            )
        _check_block_changes(block_changes or {}, encoder, tasks, bool(task_encoders))
        reserved = [name for name in tasks if hasattr(nn.ModuleDict(), name)]
        if reserved:
            raise SimoError(f"torch keeps the name(s) {', '.join(reserved)} for itself; name the task differently")
        self.encoder = encoder
        self.decoders = nn.ModuleDict(decoders)
        self.aligners = nn.ModuleDict(aligners or {})
        self.task_encoders = nn.ModuleDict(task_encoders or {})
        self.block_changes = nn.ModuleDict(block_changes or {})
        self.tasks = dict(tasks)
        self.base = base
        self.merge = merge
        self.provenance: dict[str, Any] = dict(provenance or {})

    @property
    def encoder_passes(self) -> float:
        """Encoder passes for one image and all tasks: one, unless tasks run blocks or whole encoders for themselves.

        Where they run blocks, `branching_passes`: most often no whole number.
        """
        if not self.block_changes:
            return len(self.task_encoders) or 1
        blocks = self.encoder.taps[-1] + 1
        return branching_passes([first_change(self.changes(task), blocks) for task in self.tasks], blocks)

    def changes(self, task: str) -> BlockChanges | None:
        """What the task changes inside the encoder, if it does."""
        return cast(BlockChanges, self.block_changes[task]) if task in self.block_changes else None

    def encoder_of(self, task: str) -> Encoder:
        """The encoder as this task runs it; weights are shared with the model, not copied."""
        if self.task_encoders:
            return cast(Encoder, self.task_encoders[task])
        changes = self.changes(task)
        return self.encoder if changes is None else TaskEncoder(self.encoder, changes)

    def taps(self, images: Tensor, tasks: Sequence[str]) -> dict[str, Taps]:
        """What each of these tasks' decoders reads, before its aligner; what tasks share is run once."""
        if self.task_encoders:
            return {name: self.task_encoders[name](images) for name in tasks}
        if any(name in self.block_changes for name in tasks):
            changes = cast(Mapping[str, BlockChanges], dict(self.block_changes.items()))
            return branching_taps(self.encoder, changes, images, tasks)
        shared = self.encoder(images)
        return dict.fromkeys(tasks, shared)

    def aligner(self, task: str) -> Aligner | None:
        """The task's aligner, if it has one."""
        return cast(Aligner, self.aligners[task]) if task in self.aligners else None

    def decode(self, taps: Taps, task: str, size: tuple[int, int]) -> Tensor:
        """One task's prediction (B, K, H, W) for images of `size` = (H, W) from the encoder's taps."""
        aligner = self.aligner(task)
        if aligner is not None:
            taps = aligner(taps)
        decoder = self.decoders[task]
        return _decode(self.encoder, decoder, self.tasks[task], taps, size)  # type: ignore[arg-type]

    def forward(self, images: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Images (B, 3, H, W) in [0, 1] -> {task: prediction (B, K, H, W)}, for all tasks or those named.

        Raises:
            SimoError: a task that the model does not have.
        """
        wanted = list(self.tasks) if tasks is None else list(tasks)
        unknown = [name for name in wanted if name not in self.tasks]
        if unknown:
            raise SimoError(f"unknown task(s) {', '.join(unknown)}; this model has {', '.join(self.tasks)}")
        taps = self.taps(images, wanted)
        size = (images.shape[-2], images.shape[-1])
        return {name: self.decode(taps[name], name, size) for name in wanted}


def _check_block_changes(
    changes: Mapping[str, BlockChanges], encoder: Encoder, tasks: Mapping[str, Task], own_encoders: bool
) -> None:
    unknown = set(changes) - set(tasks)
    if unknown:
        raise SimoError(f"block changes for unknown tasks {sorted(unknown)}; the tasks are {sorted(tasks)}")
    if changes and own_encoders:
        raise SimoError("every task has an encoder of its own, so there is no shared one whose blocks it could change")
    last = encoder.taps[-1]
    for task, change in changes.items():
        if max(change.indices) > last:
            raise SimoError(
                f"{task} changes block {max(change.indices)}, but the last tap reads block {last}; change blocks 0 to "
                f"{last}"
            )


def _decode(encoder: Encoder, decoder: Decoder, task: Task, taps: Taps, size: tuple[int, int]) -> Tensor:
    raw = decoder(taps, encoder.padded_size(*size))
    return task.activate(encoder.crop(raw, *size))
