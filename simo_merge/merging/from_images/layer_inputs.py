"""What reaches each layer of an encoder: second moments of inputs, streamed over images.

The patch embedding is left out on purpose. Every expert sees the same image, so its inputs weigh the same for all
tasks, and the least-squares merge of experts under equal weights is their average.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simo_merge.device import autocast
from simo_merge.errors import SimoError
from simo_merge.merging.method import DataMergeMethod, MergeData
from simo_merge.merging.parameter import Parameter
from simo_merge.models import Encoder
from simo_merge.progress import progress
from simo_merge.scoring import BATCH_SIZE, batches

_ROWS = 4096  # tokens in float64 at a time


@dataclass
class LayerInputs:
    """Sums over tokens, in float64, by the name of the parameter that the inputs are multiplied with.

    Attributes:
        grams: X'X (C, C), for the weight of a linear layer that reads X (n, C).
        squares: the diagonal of X'X, (C,), for a scale of channels: the weight of a LayerNorm, which reads what is
            normalised already, or the gamma of a LayerScale.
        tokens: n.
    """

    grams: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, inputs: Tensor, kind: dict[str, Tensor]) -> None:
        """Add the inputs (..., C) of a batch to `grams` or `squares`."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        self.tokens[name] = self.tokens.get(name, 0) + len(rows)
        for part in torch.split(rows, _ROWS):
            wide = part.double()
            moment = wide.T @ wide if kind is self.grams else wide.square().sum(dim=0)
            kind[name] = kind[name] + moment if name in kind else moment

    def check(self, label: str) -> None:
        """Refuse NaN and infinity.

        Raises:
            SimoError: it names the first such layer.
        """
        for name, moment in (self.grams | self.squares).items():
            if not torch.isfinite(moment).all():
                raise SimoError(
                    f"{label}: what reaches {name} holds NaN or infinity; the weights are broken, or the precision is "
                    "too low: use float32"
                )


@contextmanager
def watch(module: nn.Module, prefix: str = "", scales: bool = False) -> Iterator[LayerInputs]:
    """Record what reaches the linear layers inside a module (and its scales of channels) while the block runs."""
    seen = LayerInputs()
    handles = []
    for path, layer in module.named_modules(prefix=prefix):
        if isinstance(layer, nn.Linear):
            handles.append(layer.register_forward_pre_hook(_recorder(seen, f"{path}.weight", seen.grams)))
        elif scales and (found := _scale_of(layer)) is not None:
            handles.append(layer.register_forward_pre_hook(_recorder(seen, f"{path}.{found}", seen.squares)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _scale_of(layer: nn.Module) -> str | None:
    """The name of the parameter that scales channels, in layers that do just that."""
    if isinstance(layer, nn.LayerNorm) and layer.elementwise_affine and len(layer.normalized_shape) == 1:
        return "weight"
    gamma = getattr(layer, "gamma", None)  # LayerScale, of which timm has several
    return "gamma" if isinstance(gamma, nn.Parameter) and gamma.ndim == 1 else None


def _recorder(seen: LayerInputs, name: str, kind: dict[str, Tensor]) -> Callable[[nn.Module, Any], None]:
    def record(layer: nn.Module, args: Any) -> None:
        inputs = args[0]
        if isinstance(layer, nn.LayerNorm):
            inputs = F.layer_norm(inputs.float(), layer.normalized_shape, eps=layer.eps)
        seen.add(name, inputs, kind)

    return record


def on_device(encoder: Encoder, device: torch.device) -> Encoder:
    """A copy to compute with: in float32, evaluation mode and without gradients; the encoder itself is not changed."""
    return copy.deepcopy(encoder).to(device, torch.float32).eval().requires_grad_(False)


def run(encoder: Encoder, given: MergeData, label: str) -> None:
    """Pass all images through an encoder, for what hooks see; blocks after the last tap do not run."""
    total = -(-len(given.images) // BATCH_SIZE)
    with torch.inference_mode():
        for batch in progress(batches(given.images, BATCH_SIZE), total, label):
            with autocast(given.device, given.precision):
                encoder(batch.images.to(given.device))


def layer_inputs(encoder: Encoder, given: MergeData, label: str, scales: bool = False) -> LayerInputs:
    """What reaches the layers of an encoder for the calibration images: one pass, on the device.

    Args:
        encoder: it is not changed; names are those of `encoder.vit`.
        given: images, device and precision.
        label: what the progress bar says.
        scales: also what reaches LayerNorm's weights and LayerScale's gammas.

    Raises:
        SimoError: NaN or infinity on the way; the layer is named.
    """
    encoder = on_device(encoder, given.device)
    with watch(encoder.vit, scales=scales) as seen:
        run(encoder, given, label)
    seen.check(label)
    return seen


class LayerFit(DataMergeMethod):
    """A method that fits some parameters to images; all others are averaged.

    `observe` gives the merged tensors of those parameters by name. Layers that no image reaches (blocks after the
    last tap, layers whose weights are used without calling them) are averaged too.
    """

    def merge(self, parameter: Parameter, statistics: Mapping[str, Tensor]) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        fitted = statistics.get(parameter.name)
        return average(parameter) if fitted is None else fitted.to(parameter.base)


def average(parameter: Parameter) -> Tensor:
    """The mean of the experts."""
    return parameter.base + parameter.vectors.mean(dim=0)
