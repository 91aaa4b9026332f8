"""Which modules of a merge suffer most when their task vectors grow: those that MAGIC never scales up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from simo_merge.data.loading import Reader, load
from simo_merge.device import autocast
from simo_merge.errors import SimoError
from simo_merge.merging.learned.objectives import OBJECTIVES
from simo_merge.merging.method import MergeData
from simo_merge.models import Encoder
from simo_merge.progress import progress

FACTOR = 1.1  # of the authors' code
_BATCH = 8


def module_sensitivity(
    merged: Encoder, base: Mapping[str, Tensor], given: MergeData, objective: str, images: int, names: list[str]
) -> dict[str, float]:
    """How much worse the merged encoder gets when one module's parameters move further from the base.

    For each module, with L_t the objective of task t on the images,

        mean_t L_t(theta_0 + 1.1 d in this module, theta_0 + d elsewhere) / L_t(theta_0 + d) - 1,

    so 0 means that it makes no difference. The paper's authors rank parameter tensors by the accuracy on labelled data
    of another task after the same change; modules and a loss relative to each task's own are ours.

    Args:
        merged: theta_0 + d, on the device, in evaluation mode; it is as it was when this returns.
        base: theta_0, by the names of `merged.vit`.
        given: experts and images.
        objective: a key of `learned.OBJECTIVES`: "features" needs no labels, "supervised" does.
        images: at most this many are used, the first of the data set.
        names: of the modules in `merged.vit`; those that no image reaches are left out.

    Raises:
        SimoError: as the objective's `check`; features or losses that are not finite; a task whose loss is 0.

    Source: Li et al., arXiv 2512.19320, and the authors' code for detecting sensitive layers.
    """
    kind = OBJECTIVES[objective]
    kind.check(given)
    used = list(range(min(images, len(given.images))))
    judge = kind(given, used)

    def losses() -> Tensor:
        plan = [used[i : i + _BATCH] for i in range(0, len(used), _BATCH)]
        total = torch.zeros(len(given.experts), dtype=torch.float64)
        with torch.inference_mode():
            for indices, batch in zip(plan, load(Reader(given.images), plan), strict=True):
                batch = batch.to(given.device)
                with autocast(given.device, given.precision):
                    taps = merged(batch.images)
                total += judge.losses(taps, indices, batch).double().cpu() * len(indices)
        return total / len(used)

    with _calls(merged.vit, names) as called:
        plain = losses()
    if not (torch.isfinite(plain).all() and (plain > 0).all()):
        told = ", ".join(f"{e.task.name} {loss:g}" for e, loss in zip(given.experts, plain.tolist(), strict=True))
        raise SimoError(
            f"sensitive modules are found by losses that grow, and those of the merge are {told}; expected numbers "
            "above 0: leave the search out"
        )
    found = {}
    reached = [name for name in names if name in called]  # what follows the last tap makes no difference to anyone
    for name in progress(reached, len(reached), "sensitive modules"):
        with _moved_further(merged.vit, name, base):
            found[name] = float((losses() / plain).mean()) - 1.0
    return found


@contextmanager
def _calls(vit: nn.Module, names: list[str]) -> Iterator[set[str]]:
    """Which of these modules run inside the block."""
    called: set[str] = set()

    def recorder(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda *_: called.add(name)

    handles = [vit.get_submodule(name).register_forward_hook(recorder(name)) for name in names]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _moved_further(vit: nn.Module, name: str, base: Mapping[str, Tensor]) -> Iterator[None]:
    """One module's own parameters `FACTOR` times as far from the base."""
    own = dict(vit.get_submodule(name).named_parameters(recurse=False))
    before = {part: value.detach().clone() for part, value in own.items()}
    try:
        with torch.no_grad():
            for part, value in own.items():
                origin = base[f"{name}.{part}"].to(value)
                value.copy_(origin + FACTOR * (value - origin))
        yield
    finally:
        with torch.no_grad():
            for part, value in own.items():
                value.copy_(before[part])
