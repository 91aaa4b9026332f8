"""What learned coefficients are tried on."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from simo_merge.data import collate
from simo_merge.merging import MergeData
from simo_merge.merging.learned.coefficients import MergedEncoder, parameters_of
from simo_merge.merging.learned.fitting import Learned
from simo_merge.merging.learned.objectives import OBJECTIVES
from simo_merge.models import Encoder, SingleTaskModel
from simo_merge.weights import Base
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData

CPU = torch.device("cpu")
ALL = (SEGMENTATION, DEPTH, NORMALS)


def given(base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData, seed: int = 0) -> MergeData:
    return MergeData(base, experts, images, CPU, seed=seed)


def with_vectors(expert: SingleTaskModel, base: Base, keep: tuple[str, ...]) -> SingleTaskModel:
    """The expert with its task vector set to zero wherever the parameter's name does not begin with one of `keep`."""
    changed = copy.deepcopy(expert)
    origin = base.vit.state_dict()
    for name, tensor in changed.encoder.vit.state_dict().items():
        if not name.startswith(keep):
            tensor.copy_(origin[name])
    return changed


def merged_encoder(
    base: Base, experts: tuple[SingleTaskModel, ...], granularity: str, initial: float = 0.3, double: bool = False
) -> MergedEncoder:
    convert = (lambda t: t.double()) if double else (lambda t: t)
    states = [{n: convert(t) for n, t in e.encoder.vit.state_dict().items()} for e in experts]
    origin = {n: convert(t) for n, t in base.vit.state_dict().items()}
    template = copy.deepcopy(experts[0].encoder)
    return MergedEncoder(
        template.double() if double else template, parameters_of(origin, states), granularity, initial, CPU
    )


def value(learned: Learned, group: str) -> list[float]:
    return learned.coefficients.as_lists()[group]


def losses(name: str, data: MergeData, indices: list[int], at: Encoder) -> Tensor:
    objective = OBJECTIVES[name](data, list(range(len(data.images))))
    batch = collate([data.images[i] for i in indices])
    with torch.no_grad():
        return objective.losses(at(batch.images), indices, batch)
