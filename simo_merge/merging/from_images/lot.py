"""LOT merging: the layer-wise task vector that lets features drift least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.merging.from_images.layer_inputs import LayerFit, layer_inputs
from simo_merge.merging.from_images.least_squares import NormalEquations
from simo_merge.merging.method import MergeData
from simo_merge.merging.options import above_zero


@dataclass(frozen=True)
class Lot(LayerFit):
    """Layer-wise optimal task vectors: each layer's answers to the experts' features drift least from the experts'.

    With X_t (n, in) what reaches the layer in expert t, and tau_t its task vector there,

        linear weight (out, in):        tau = (sum_t tau_t X_t' X_t) (sum_t X_t' X_t)^+
        scale of channels (C,):         tau = (sum_t x_t tau_t) / (sum_t x_t),   x_t the column sums of X_t^2
        bias and everything else:       tau = (1/T) sum_t tau_t

    and merged = theta_0 + tau. Scales are the weights of LayerNorms (X_t then is what they have normalised) and the
    gammas of LayerScales. The first two minimise sum_t ||X_t (tau - tau_t)'||^2.

    The pseudo-inverse is taken as the limit of a ridge, in float64: what no input reaches keeps the base's weights.

    ridge: relative to the mean eigenvalue of sum_t X_t' X_t; above 0. The paper has none.

    Raises:
        SimoError: an option out of range; when it sees images, NaN in what reaches a layer.

    Source: Sun et al., arXiv 2505.23859, equations 9 (linear) and 12 (scales).
    """

    name: ClassVar[str] = "lot"
    ridge: float = 1e-8

    def __post_init__(self) -> None:
        object.__setattr__(self, "ridge", above_zero(self.name, "ridge", self.ridge))

    def observe(self, given: MergeData) -> dict[str, Tensor]:
        """The merged linear weights and scales, by name."""
        base = given.base.vit.state_dict()
        linear: dict[str, NormalEquations] = {}
        scales: dict[str, tuple[Tensor, Tensor]] = {}  # sum_t x_t tau_t, sum_t x_t
        for expert in given.experts:
            seen = layer_inputs(expert.encoder, given, f"layer inputs: {expert.task.name}", scales=True)
            state = expert.encoder.vit.state_dict()
            for name, gram in seen.grams.items():
                vector = (state[name].double() - base[name].double()).to(gram.device)
                linear.setdefault(name, NormalEquations.empty(vector)).add(gram, vector)
            for name, squares in seen.squares.items():
                vector = (state[name].double() - base[name].double()).to(squares.device)
                moved, weight = scales.get(name, (torch.zeros_like(squares), torch.zeros_like(squares)))
                scales[name] = moved + squares * vector, weight + squares
        vectors = {name: equation.solve(self.ridge) for name, equation in linear.items()}
        for name, (moved, weight) in scales.items():
            vectors[name] = torch.where(weight > 0, moved / torch.where(weight > 0, weight, 1.0), 0.0)
        return {name: base[name] + vector.to(base[name]) for name, vector in vectors.items()}
