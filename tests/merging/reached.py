"""What merges that learn from images are tried on, and what reaches a layer, recorded in the plainest way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from simo_merge.merging import DataMergeMethod, MergeData
from simo_merge.merging.states import merge_states
from simo_merge.models import Encoder, SingleTaskModel
from simo_merge.tasks import Task
from simo_merge.weights import Base
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData, tiny_base, tiny_expert

TASKS = (SEGMENTATION, DEPTH, NORMALS)


def layered_base(seed: int = 0) -> Base:
    """Two blocks of 24 channels with LayerScale: every kind of parameter that a method tells apart."""
    base = tiny_base(seed, depth=2, embed_dim=24, num_heads=2, init_values=0.5)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in base.vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return base


def given(
    images: int = 24,
    tasks: Sequence[Task] = TASKS,
    seeds: Sequence[int] = (0, 1, 2),
    base: Base | None = None,
    shift: float = 0.05,
    taps: Sequence[int] = (0, 1),
) -> MergeData:
    base = base or layered_base()
    experts = tuple(tiny_expert(task, base, seed, shift, taps=taps) for task, seed in zip(tasks, seeds, strict=False))
    return MergeData(base, experts, TinyData(images, tasks), torch.device("cpu"))


def merged_by(method: DataMergeMethod, data: MergeData) -> dict[str, Tensor]:
    states = [expert.encoder.vit.state_dict() for expert in data.experts]
    return merge_states(data.base.vit.state_dict(), states, method, method.observe(data)).shared


def state(expert: SingleTaskModel) -> dict[str, Tensor]:
    return expert.encoder.vit.state_dict()


def linear_weights(data: MergeData) -> list[str]:
    """Names of the weights of all linear layers that the encoder calls."""
    modules = data.base.vit.named_modules()
    return [f"{name}.weight" for name, module in modules if isinstance(module, nn.Linear)]


def all_images(data: MergeData) -> Tensor:
    return torch.stack([data.images[i].image for i in range(len(data.images))])


def reaches(encoder: Encoder, images: Tensor, layer: str) -> Tensor:
    """X (n, C), float64: the rows that a layer is given."""
    rows: list[Tensor] = []
    hook = encoder.vit.get_submodule(layer).register_forward_hook(lambda _, args, out: rows.append(args[0]))
    with torch.inference_mode():
        encoder(images)
    hook.remove()
    return torch.cat([part.flatten(0, -2) for part in rows]).double()
