"""Merging experts into a multi-task model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.checks import check_experts, check_finite
from simo_merge.merging.methods import MergeMethod
from simo_merge.merging.parameter import Parameter, count_blocks, layer_of
from simo_merge.models import BaseRecord, MergeRecord, MultiTaskModel, SingleTaskModel
from simo_merge.weights import Base, fingerprint, load_base


def merge(experts: Sequence[SingleTaskModel], method: MergeMethod, base: Base | None = None) -> MultiTaskModel:
    """Merge the encoders of experts; every task keeps its own decoder, untouched.

    Args:
        experts: two or more single-task models that were fine-tuned from one base.
        method: how the task vectors (expert minus base) are combined.
        base: the base weights; default: found again from what the experts' checkpoints record.

    Returns:
        A multi-task model in evaluation mode, on the CPU: one encoder pass serves all tasks.

    Raises:
        SimoError: experts of different bases, encoders, taps or resolutions, a task twice, NaN in weights, or a
            base that is not the one that the experts came from.
    """
    check_experts(experts)
    base = base or find_base(experts)
    _check_is_base(base, experts)
    states = {expert.task.name: expert.encoder.vit.state_dict() for expert in experts}
    for task, state in states.items():
        check_finite(state, task)
    merged = merge_states(base.vit.state_dict(), list(states.values()), method)
    encoder = copy.deepcopy(experts[0].encoder).cpu()
    encoder.vit.load_state_dict(merged)
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
    ).eval()


def merge_states(
    base: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]], method: MergeMethod
) -> dict[str, Tensor]:
    """Merge state dicts parameter by parameter, in float32; integer buffers are the base's.

    Peak memory is the output plus a few tensors for every expert.
    """
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

    statistics = method.statistics(parameters)
    found = {p.name: method.merge(p, statistics).to(base[p.name].dtype) for p in parameters()}
    return {name: found[name] if name in found else origin.clone() for name, origin in base.items()}


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
