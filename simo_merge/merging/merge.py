"""Merging experts into a multi-task model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from simo_merge.data import DenseDataset
from simo_merge.device import resolve_device
from simo_merge.errors import SimoError
from simo_merge.merging.checks import (
    ExpertFacts,
    check_base,
    check_experts,
    check_images,
    check_state_finite,
    facts_of,
    shared_image_size,
)
from simo_merge.merging.duplicates import warn_of_duplicates
from simo_merge.merging.grids import with_grid_of
from simo_merge.merging.method import DataMergeMethod, MergeData, MergeMethod
from simo_merge.merging.states import MergedStates as MergedStates
from simo_merge.merging.states import merge_states as merge_states
from simo_merge.models import BaseRecord, Encoder, MergeRecord, MultiTaskModel, SingleTaskModel
from simo_merge.weights import Base, fingerprint, load_base

M = TypeVar("M", bound=nn.Module)


def merge(
    experts: Sequence[SingleTaskModel],
    method: MergeMethod,
    base: Base | None = None,
    images: DenseDataset | None = None,
    device: str | torch.device | None = None,
    precision: str = "float32",
    seed: int = 0,
    resample_pos_embed: bool = False,
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
        resample_pos_embed: whether experts whose position embeddings have another grid than the base's are brought to
            it. A base that is not given is loaded with the image size that all experts have, else with its own.

    Returns:
        A multi-task model in evaluation mode, on the CPU. One encoder pass serves all tasks, unless the method
        gives every task an encoder of its own (`TaskSpecificMethod`).

    Raises:
        SimoError: experts of different bases, encoders, taps or resolutions, a task twice, NaN in weights, a
            base that is not the one that the experts came from, or a method that learns from images and has none, or
            from labels and has none or those of the test split.
    """
    if not isinstance(method, MergeMethod):
        raise SimoError(f"expected a merge method such as TaskArithmetic(0.3) or merge_method('ties'), got {method!r}")
    anything = cast(Sequence[object], experts)
    strangers = [type(expert).__name__ for expert in anything if not isinstance(expert, SingleTaskModel)]
    if strangers:
        raise SimoError(f"expected single-task models to merge, got {', '.join(strangers)}; load checkpoints first")
    check_experts(experts, resample_pos_embed)
    base = base or find_base(experts)
    check_base(base, experts, resample_pos_embed)
    base, given = replace(base, vit=on_cpu(base.vit)), [on_cpu(expert) for expert in experts]
    experts = [with_grid_of(base, expert) for expert in given]
    states = [expert.encoder.vit.state_dict() for expert in experts]
    labels = encoder_labels([expert.task.name for expert in experts])
    observed = None
    if isinstance(method, DataMergeMethod):
        for label, state in zip(labels[1:], states, strict=True):
            check_state_finite(state, label)
        pictures = check_images(method, experts, images)
        observed = method.observe(MergeData(base, tuple(experts), pictures, resolve_device(device), precision, seed))
    warn_of_duplicates(base.vit.state_dict(), states, labels)
    merged = merge_states(base.vit.state_dict(), states, method, observed, labels=labels)
    encoder = _encoder(experts[0], merged.shared)
    own = {expert.task.name: _encoder(expert, state) for expert, state in zip(experts, merged.by_expert, strict=False)}
    looked_at, labelled = images_of(method, images)
    record = MergeRecord(
        method=method.name,
        parameters=method.record(merged.statistics),
        images=looked_at,
        labels=labelled,
        experts={
            expert.task.name: {
                "path": expert.provenance.get("path"),
                "sha256": fingerprint(expert.state_dict()),
            }
            for expert in given
        },
    )
    return MultiTaskModel(
        encoder,
        {expert.task.name: copy.deepcopy(expert.decoder) for expert in experts},
        {expert.task.name: expert.task for expert in experts},
        base=BaseRecord(base.name, base.source, base.sha256),
        merge=record,
        task_encoders=own,
    ).eval()


def on_cpu(module: M) -> M:
    """The module where it is on the CPU, else a copy there: weights are merged where they fit, whoever holds them."""
    return module if all(p.device.type == "cpu" for p in module.parameters()) else copy.deepcopy(module).cpu()


def images_of(method: MergeMethod, images: DenseDataset | None) -> tuple[int, int]:
    """How many of the images a method learns from, and how many of those with labels."""
    if not isinstance(method, DataMergeMethod) or images is None:
        return 0, 0
    return len(images), len(images) if method.needs_labels else 0


def encoder_labels(tasks: Sequence[str]) -> tuple[str, ...]:
    """What messages call the encoders of the base and of the experts for these tasks."""
    return ("the base", *(f"the encoder of {task}" for task in tasks))


def _encoder(like: SingleTaskModel, state: Mapping[str, Tensor]) -> Encoder:
    encoder = copy.deepcopy(like.encoder)
    encoder.vit.load_state_dict(state)
    return encoder


def find_base(experts: Sequence[SingleTaskModel | ExpertFacts]) -> Base:
    """The base weights that the experts record.

    Raises:
        SimoError: no expert records its base, or it came from a local file that only the caller knows.
    """
    facts = facts_of(experts)
    record = next((expert.base for expert in facts if expert.base is not None), None)
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
    return load_base(record.name, scheme, shared_image_size(facts))
