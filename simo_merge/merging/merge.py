"""Merging experts into a multi-task model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simo_merge.data import DenseDataset
from simo_merge.device import resolve_device
from simo_merge.errors import SimoError
from simo_merge.merging.checks import check_experts, check_finite
from simo_merge.merging.method import DataMergeMethod, MergeData, MergeMethod, TaskSpecificMethod
from simo_merge.merging.parameter import Parameter, count_blocks, layer_of
from simo_merge.models import BaseRecord, Encoder, MergeRecord, MultiTaskModel, SingleTaskModel
from simo_merge.weights import Base, fingerprint, load_base


def merge(
    experts: Sequence[SingleTaskModel],
    method: MergeMethod,
    base: Base | None = None,
    images: DenseDataset | None = None,
    device: str | torch.device | None = None,
    precision: str = "float32",
    seed: int = 0,
) -> MultiTaskModel:
    """Merge the encoders of experts; every task keeps its own decoder, untouched.

    Args:
        experts: two or more single-task models that were fine-tuned from one base.
        method: how the task vectors (expert minus base) are combined.
        base: the base weights; default: found again from what the experts' checkpoints record.
        images: calibration images, for methods that learn from them; labels are read only by methods that need them.
        device: where such methods compute; default: the GPU if there is one.
        precision: of their forward passes.
        seed: of what they draw at random.

    Returns:
        A multi-task model in evaluation mode, on the CPU. One encoder pass serves all tasks, unless the method
        gives every task an encoder of its own (`TaskSpecificMethod`).

    Raises:
        SimoError: experts of different bases, encoders, taps or resolutions, a task twice, NaN in weights, a
            base that is not the one that the experts came from, or a method that needs images and has none.
    """
    check_experts(experts)
    base = base or find_base(experts)
    _check_is_base(base, experts)
    states = {expert.task.name: expert.encoder.vit.state_dict() for expert in experts}
    for task, state in states.items():
        check_finite(state, task)
    observed = None
    if isinstance(method, DataMergeMethod):
        if images is None or len(images) == 0:
            raise SimoError(f"{method.name} learns from images; give it calibration images")
        observed = method.observe(MergeData(base, tuple(experts), images, resolve_device(device), precision, seed))
    merged = merge_states(base.vit.state_dict(), list(states.values()), method, observed)
    encoder = _encoder(experts[0], merged.shared)
    own = {expert.task.name: _encoder(expert, state) for expert, state in zip(experts, merged.by_expert, strict=False)}
    record = MergeRecord(
        method=method.name,
        parameters=method.parameters(),
        experts={
            expert.task.name: {
                "path": expert.provenance.get("path"),
                "sha256": fingerprint(expert.state_dict()),
            }
            for expert in experts
        },
    )
    return MultiTaskModel(
        encoder,
        {expert.task.name: copy.deepcopy(expert.decoder).cpu() for expert in experts},
        {expert.task.name: expert.task for expert in experts},
        base=BaseRecord(base.name, base.source, base.sha256),
        merge=record,
        task_encoders=own,
    ).eval()


def _encoder(like: SingleTaskModel, state: Mapping[str, Tensor]) -> Encoder:
    encoder = copy.deepcopy(like.encoder).cpu()
    encoder.vit.load_state_dict(state)
    return encoder


@dataclass(frozen=True)
class MergedStates:
    """What a merge gives: the shared state dict and, for task-specific methods, one for each expert."""

    shared: dict[str, Tensor]
    by_expert: tuple[dict[str, Tensor], ...] = ()


def merge_states(
    base: Mapping[str, Tensor],
    experts: Sequence[Mapping[str, Tensor]],
    method: MergeMethod,
    observed: Any = None,
) -> MergedStates:
    """Merge state dicts parameter by parameter, in float32; integer buffers are the base's.

    Peak memory is the output plus a few tensors for every expert.

    Args:
        base: the base's tensors, in memory or read as they are asked for.
        experts: the experts'.
        method: how they are combined.
        observed: what a `DataMergeMethod` has observed.

    Raises:
        SimoError: a method that learns from images, without what it has observed.
    """
    if isinstance(method, DataMergeMethod) and observed is None:
        raise SimoError(f"{method.name} learns from images, so state dicts alone are not enough; merge the models")
    blocks = count_blocks(list(base))
    names = [name for name, origin in base.items() if origin.is_floating_point()]

    def parameters() -> Iterator[Parameter]:
        for name in names:
            yield Parameter(
                name,
                base[name].detach().cpu().float(),
                tuple(expert[name].detach().cpu().float() for expert in experts),
                layer_of(name, blocks),
                blocks + 2,
            )

    statistics = observed if isinstance(method, DataMergeMethod) else method.statistics(parameters)
    shared = {name: origin.clone() for name, origin in base.items()}
    by_expert: tuple[dict[str, Tensor], ...] = ()
    if isinstance(method, TaskSpecificMethod):
        by_expert = tuple(dict(shared) for _ in experts)
    for parameter in parameters():
        stored = base[parameter.name].dtype
        shared[parameter.name] = method.merge(parameter, statistics).to(stored)
        if isinstance(method, TaskSpecificMethod):
            for state, own in zip(by_expert, method.merge_for_tasks(parameter, statistics), strict=True):
                state[parameter.name] = own.to(stored)
    return MergedStates(shared, by_expert)


def find_base(experts: Sequence[SingleTaskModel]) -> Base:
    """The base weights that the experts record.

    Raises:
        SimoError: no expert records its base, or it came from a local file that only the caller knows.
    """
    record = next((expert.base for expert in experts if expert.base is not None), None)
    if record is None:
        raise SimoError(
            "no expert records the base weights it came from (imported models do not); give the base (--base)"
        )
    scheme, _, rest = record.source.partition(":")
    if scheme == "file":
        raise SimoError(
            f"the experts came from base weights in a local file ({rest}, SHA-256 {record.sha256[:12]}); give that "
            "file as the base"
        )
    return load_base(record.name, scheme, experts[0].encoder.grid_size)


def _check_is_base(base: Base, experts: Sequence[SingleTaskModel]) -> None:
    for expert in experts:
        record = expert.base
        if record is not None and record.sha256 != base.sha256:
            raise SimoError(
                f"the base given is {base.name} ({base.source}, {base.sha256[:12]}), but the expert for "
                f"{expert.task.name} came from {record.name} ({record.source}, {record.sha256[:12]}); give the base "
                "that the experts were fine-tuned from"
            )
    ours, theirs = base.vit.state_dict(), experts[0].encoder.vit.state_dict()
    different = sorted(n for n in ours.keys() | theirs.keys() if n not in ours or n not in theirs)
    if different:
        raise SimoError(f"base and experts have different tensors: {', '.join(different[:4])}")
    reshaped = [n for n in ours if ours[n].shape != theirs[n].shape]
    if reshaped:
        raise SimoError(
            f"base and experts differ in the shape of {', '.join(reshaped[:4])}; load the base with the image size "
            "of the experts"
        )
