"""What must hold before state dicts can be merged: all that is wrong, in one message that names the tensors."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.positions import OFFER, POSITIONS
from simo_merge.merging.stored import Stored, stored_in

_LOG = logging.getLogger(__name__)
# Parts of the names that peft gives to the tensors of adapters, and to those that they stand beside.
_ADAPTERS = ("lora_A", "lora_B", "lora_embedding_", "lora_magnitude_vector", "base_layer", "modules_to_save")
_SAMPLED = 4  # matrices that tell whether an expert belongs to the base
_ENTRIES = 1 << 16  # of each
State = Mapping[str, Tensor]


def check_states(base: State, experts: Sequence[State], labels: Sequence[str]) -> None:
    """Refuse experts whose tensors are not those of the base; nothing but headers is read.

    Args:
        base: the base's tensors.
        experts: the experts'.
        labels: what to call base and experts in messages.

    Raises:
        SimoError: fewer than two experts, adapters that are not folded in, quantised weights, and tensors that are
            missing, left over, of another shape, or numbers in one and integers in the other; every expert's problems,
            in one message.
    """
    if len(experts) < 2:
        raise SimoError(f"merging takes at least two experts, got {len(experts)}")
    if not base:
        raise SimoError(f"{labels[0]} holds no tensors")
    problems = [
        f"{label}: {problem}"
        for state, label in zip((base, *experts), labels, strict=True)
        if (problem := _adapters(state) or _quantised(state))
    ]
    if not problems:
        wanted = {name: stored_in(base, name) for name in base}
        problems = [
            f"{label}: {problem}"
            for state, label in zip(experts, labels[1:], strict=True)
            if (problem := _differences(wanted, state))
        ]
    if problems:
        raise SimoError(f"these do not merge. {'. '.join(problems)}")


def warn_of_integers(base: State, experts: Sequence[State], labels: Sequence[str]) -> None:
    """Say which integer tensors differ: they cannot be merged, and the base's are kept."""
    names = [name for name in base if not stored_in(base, name).is_float]
    different = {
        name: [
            label for state, label in zip(experts, labels[1:], strict=True) if not torch.equal(state[name], base[name])
        ]
        for name in names
        if not name.endswith("num_batches_tracked")  # a counter that means nothing for merged weights
    }
    told = [f"{name} ({', '.join(whose)})" for name, whose in different.items() if whose]
    if told:
        _LOG.warning("integers cannot be merged; kept the base's of %s", _first(told))


def warn_of_strangers(base: State, experts: Sequence[State], labels: Sequence[str]) -> None:
    """Say which experts are as far from the base as unrelated weights are.

    Fine-tuning moves weights by a few percent of their norm; two independent sets are sqrt(2) norms apart. The
    first rows of a few of the largest matrices tell.
    """
    matrices = [name for name in base if stored_in(base, name).is_float and len(stored_in(base, name).shape) >= 2]
    chosen = sorted(matrices, key=lambda name: (-math.prod(stored_in(base, name).shape), name))[:_SAMPLED]
    for state, label in zip(experts, labels[1:], strict=True):
        moved = sum(float((_start(state[name]) - _start(base[name])).square().sum()) for name in chosen)
        size = sum(float(_start(base[name]).square().sum()) for name in chosen)
        if moved >= size > 0:
            _LOG.warning(
                "%s is as far from %s as unrelated weights would be (%.1f times as far as zero is): "
                "it was probably not fine-tuned from them, and the merge will then be of no use",
                label,
                labels[0],
                math.sqrt(moved / size),
            )


def _start(tensor: Tensor) -> Tensor:
    """The first rows of a matrix, which tell as much as all of it and are read much sooner."""
    return tensor.detach().reshape(-1)[:_ENTRIES].cpu().float()


def _adapters(state: State) -> str:
    found = [name for name in state if any(part in name for part in _ADAPTERS)]
    if not found:
        return ""
    return (
        f"it holds adapters that are not folded into the weights ({_first(found)}); call merge_and_unload() on the "
        "model and save that"
    )


def _quantised(state: State) -> str:
    """Numbers of 8 bits are weights only together with scales, which lie elsewhere or in tensors of their own."""
    found = [name for name in state if stored_in(state, name).is_float and stored_in(state, name).dtype.itemsize == 1]
    if not found:
        return ""
    return (
        f"it holds weights quantised to 8 bits ({stored_in(state, found[0]).dtype}: {_first(found)}), which are "
        "numbers only with their scales; save it in bfloat16 or float32 with the program that quantised it"
    )


def _differences(wanted: Mapping[str, Stored], state: State) -> str:
    missing = [name for name in wanted if name not in state]
    extra = [name for name in state if name not in wanted]
    both = [name for name in wanted if name in state]
    held = {name: stored_in(state, name) for name in both}
    shapes = [
        f"{name} {held[name].shape} instead of {wanted[name].shape}"
        for name in both
        if held[name].shape != wanted[name].shape
    ]
    kinds = [
        f"{name} {held[name].dtype} instead of {wanted[name].dtype}"
        for name in both
        if held[name].is_float != wanted[name].is_float
    ]
    parts = [
        f"{len(names)} tensors {label}: {_first(names)}"
        for label, names in (
            ("missing", missing),
            ("that the base does not have", extra),
            ("of another shape", shapes),
            ("of another kind", kinds),
        )
        if names
    ]
    hints = []
    if any(line.split(" ")[0] == POSITIONS for line in shapes):
        hints.append(f"these are of another image size; {OFFER}")
    if extra or missing:
        hints.append("leave out what need not be merged, such as classifiers, with --skip PATTERN")
    return "; ".join(parts) + (f" ({'; '.join(hints)})" if hints else "")


def _first(names: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
