"""The merged encoder as a differentiable function of its coefficients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from simo_merge.merging.parameter import Parameter, count_blocks, layer_label, layer_of
from simo_merge.models import Encoder, Taps

GRANULARITIES: dict[str, Callable[[Parameter], str]] = {
    "task": lambda parameter: "all",
    "layer": layer_label,
    "tensor": lambda parameter: parameter.name,
}
"""What shares a coefficient: the name of the group that a parameter belongs to."""


def combine(base: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
    """theta_0 + sum_t lambda_t tau_t: base (...), vectors (T, ...), coefficients (T,) -> (...)."""
    change: Tensor = torch.tensordot(coefficients, vectors, dims=1)
    return base + change


@dataclass(frozen=True)
class Coefficients:
    """lambda: one coefficient for every group of parameters and every task.

    Attributes:
        granularity: A key of `GRANULARITIES`.
        groups: Names of the groups, in the order in which their parameters come.
        values: (G, T).
    """

    granularity: str
    groups: tuple[str, ...]
    values: Tensor

    def of(self, parameter: Parameter) -> Tensor:
        """The coefficients of one parameter, (T,), of its type and on its device."""
        row = self.groups.index(GRANULARITIES[self.granularity](parameter))
        return self.values[row].to(parameter.base)

    def as_lists(self) -> dict[str, list[float]]:
        """Group -> its coefficients in the order of the experts, as plain numbers."""
        return dict(zip(self.groups, self.values.tolist(), strict=True))


def parameters_of(base: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]]) -> Iterator[Parameter]:
    """The floating-point tensors of state dicts as parameters, in the base's order, where and as precise as they are.

    Types narrower than float32 are widened to it.
    """
    blocks = count_blocks(list(base))
    for name, origin in base.items():
        if origin.is_floating_point():
            found = tuple(_wide(expert[name]) for expert in experts)
            yield Parameter(name, _wide(origin), found, layer_of(name, blocks), blocks + 2)


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class MergedEncoder:
    """An encoder whose weights are theta_0 + sum_t lambda_{g,t} tau_{t}, to be differentiated by lambda.

    Back-propagation goes once through the merged weights: dL/dlambda_{g,t} is the sum over the parameters of group g
    of <dL/dtheta, tau_t>. In memory are the base, the T task vectors and one gradient of the encoder; the base's and
    experts' own tensors are not kept.

    Args:
        template: An encoder of the right shape; it is copied.
        parameters: Base and experts; every floating-point tensor of `template.vit`.
        granularity: A key of `GRANULARITIES`.
        initial: The value that all coefficients start from.
        device: Where to compute.
        clamp: Use the coefficients clamped to 0..1.
        vectors: What the coefficients weigh, (T, ...); default: the task vectors.
    """

    def __init__(
        self,
        template: Encoder,
        parameters: Iterator[Parameter],
        granularity: str,
        initial: float,
        device: torch.device,
        clamp: bool = False,
        vectors: Callable[[Parameter], Tensor] | None = None,
    ) -> None:
        self.encoder = copy.deepcopy(template).to(device).eval().requires_grad_(False)
        self.granularity = granularity
        self.clamp = clamp
        self.groups: list[str] = []
        self._parts: list[tuple[str, int, Tensor, Tensor]] = []
        for parameter in parameters:
            group = GRANULARITIES[granularity](parameter)
            if group not in self.groups:
                self.groups.append(group)
            stacked = parameter.vectors if vectors is None else vectors(parameter)
            row = self.groups.index(group)
            self._parts.append((f"vit.{parameter.name}", row, parameter.base.to(device), stacked.to(device)))
        _, _, base, stacked = self._parts[0]
        shape = (len(self.groups), len(stacked))
        self.raw = torch.full(shape, initial, dtype=base.dtype, device=device, requires_grad=True)

    @property
    def values(self) -> Tensor:
        """The coefficients as they are used, (G, T)."""
        return self.raw.clamp(0.0, 1.0) if self.clamp else self.raw

    def weights(self) -> dict[str, Tensor]:
        """The merged tensors by their names in the encoder."""
        values = self.values
        with torch.autocast(values.device.type, enabled=False):  # weights are merged in full precision
            return {name: combine(base, vectors, values[row]) for name, row, base, vectors in self._parts}

    def __call__(self, images: Tensor) -> Taps:
        """Images (B, 3, H, W) -> taps, with a graph that leads to the coefficients."""
        taps: Taps = functional_call(self.encoder, self.weights(), (images,))
        return taps

    def coefficients(self) -> Coefficients:
        """The coefficients as they are now, on the CPU."""
        return Coefficients(self.granularity, tuple(self.groups), self.values.detach().cpu().clone())
