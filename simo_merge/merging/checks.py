"""What must hold before experts can be merged, with messages that say what to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.models import SingleTaskModel
from simo_merge.weights.loading import GRID_TENSORS


def check_experts(experts: Sequence[SingleTaskModel]) -> None:
    """Refuse experts that do not belong together.

    Raises:
        SimoError: fewer than two, one task twice, or encoders of different names, taps, sizes or bases.
    """
    if len(experts) < 2:
        raise SimoError(f"merging takes at least two experts, got {len(experts)}")
    names = [expert.task.name for expert in experts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SimoError(f"two experts are for the same task: {', '.join(twice)}; give one expert a task")
    first, recorded = experts[0], next((expert for expert in experts if expert.base is not None), experts[0])
    for other in experts[1:]:
        pair = f"{first.task.name} and {other.task.name}"
        if other.encoder.name != first.encoder.name:
            raise SimoError(
                f"the experts for {pair} have different encoders, {first.encoder.name} and {other.encoder.name}; "
                "only experts of one base can be merged"
            )
        if other.encoder.taps != first.encoder.taps:
            raise SimoError(
                f"the decoders of {pair} read different blocks, {first.encoder.taps} and {other.encoder.taps}; "
                "train them with the same taps"
            )
        _check_shapes(first, other, pair)
        _check_base(recorded, other)


def _check_shapes(first: SingleTaskModel, other: SingleTaskModel, pair: str) -> None:
    ours, theirs = first.encoder.state_dict(), other.encoder.state_dict()
    if ours.keys() != theirs.keys():
        different = sorted(ours.keys() ^ theirs.keys())
        raise SimoError(f"the encoders of {pair} have different tensors: {', '.join(different[:4])}")
    for name in ours:
        if ours[name].shape != theirs[name].shape:
            cause = "they are different encoders"
            if name.endswith(GRID_TENSORS):
                cause = "they were trained at different resolutions. Train them with one image size"
            raise SimoError(
                f"the encoders of {pair} have {name} of different shapes, {tuple(ours[name].shape)} and "
                f"{tuple(theirs[name].shape)}: {cause}"
            )


def _check_base(first: SingleTaskModel, other: SingleTaskModel) -> None:
    ours, theirs = first.base, other.base
    if ours is not None and theirs is not None and ours.sha256 != theirs.sha256:
        raise SimoError(
            f"the experts for {first.task.name} and {other.task.name} come from different bases: {ours.name} "
            f"({ours.source}, {ours.sha256[:12]}) and {theirs.name} ({theirs.source}, {theirs.sha256[:12]}). Task "
            "vectors of different bases cannot be added; fine-tune both from one"
        )


def check_finite(state: dict[str, Tensor], whose: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        SimoError: it names the first such tensor.
    """
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise SimoError(f"the encoder of {whose} holds NaN or infinity in {name}; train that expert again")
