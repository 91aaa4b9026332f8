"""One multi-task model whose merged weights are replaced, candidate by candidate."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from simo_merge.data import DenseDataset
from simo_merge.merging import (
    DataMergeMethod,
    MergeData,
    MergeMethod,
    TaskSpecificMethod,
    WeightAverage,
    merge,
    merge_states,
)
from simo_merge.merging.checks import check_images
from simo_merge.merging.grids import with_grid_of
from simo_merge.merging.merge import on_cpu
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel
from simo_merge.weights import Base


class InPlaceMerge:
    """Merges the same experts again and again into one model.

    Args:
        experts: as for `merging.merge`.
        base: their base.
        images: for methods that learn from images.
        device: where such methods compute.
        precision: of their forward passes.
        seed: of what they draw at random.
        resample_pos_embed: as for `merging.merge`.

    Raises:
        SimoError: as `merging.merge`.
    """

    def __init__(
        self,
        experts: Sequence[SingleTaskModel],
        base: Base,
        images: DenseDataset | None,
        device: torch.device,
        precision: str,
        seed: int,
        resample_pos_embed: bool = False,
    ) -> None:
        # Any merge will do: its weights are replaced.
        self.model = merge(experts, WeightAverage(), base, resample_pos_embed=resample_pos_embed)
        self._experts = tuple(with_grid_of(base, on_cpu(expert)) for expert in experts)
        self._base = base
        self._images = images
        self._options = (device, precision, seed)

    def __call__(self, method: MergeMethod) -> MultiTaskModel:
        """The model, with the weights that the method gives: the same object in every call."""
        states = [expert.encoder.vit.state_dict() for expert in self._experts]
        merged = merge_states(self._base.vit.state_dict(), states, method, self._observe(method))
        self.model.encoder.vit.load_state_dict(merged.shared)
        own = self._own_encoders(isinstance(method, TaskSpecificMethod))
        for encoder, state in zip(own, merged.by_expert, strict=True):
            encoder.vit.load_state_dict(state)
        return self.model

    def _observe(self, method: MergeMethod) -> Any:
        if not isinstance(method, DataMergeMethod):
            return None
        images = check_images(method, self._experts, self._images)
        return method.observe(MergeData(self._base, self._experts, images, *self._options))

    def _own_encoders(self, wanted: bool) -> list[Encoder]:
        if wanted and not self.model.task_encoders:
            copies = {expert.task.name: copy.deepcopy(expert.encoder) for expert in self._experts}
            self.model.task_encoders = nn.ModuleDict(copies).eval()
        return list(self.model.task_encoders.values())  # type: ignore[arg-type]
