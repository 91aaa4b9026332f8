"""Kronecker factors of the Fisher information of linear layers: their inputs and the gradients of their outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simo_merge.device import autocast
from simo_merge.merging.from_images.fisher import first_images, surprise
from simo_merge.merging.from_images.layer_inputs import LayerInputs, watch
from simo_merge.merging.method import MergeData
from simo_merge.models import SingleTaskModel
from simo_merge.progress import progress


@dataclass
class KroneckerFactors:
    """The Fisher information of every linear layer as S (x) A, by the name of its weight; float32, on the CPU.

    Attributes:
        inputs: A = mean over tokens of a a', (in, in), for what reaches the layer.
        gradients: S = mean over images of sum over tokens of g g', (out, out), for g = -d log p(y | x) / d output.
    """

    inputs: dict[str, Tensor]
    gradients: dict[str, Tensor]

    def mean_square(self) -> float:
        """The mean over all weights of the diagonal of S (x) A: how large squared gradients are for this task."""
        total = sum(float(s.diagonal().sum() * self.inputs[n].diagonal().sum()) for n, s in self.gradients.items())
        weights = sum(len(s) * len(self.inputs[n]) for n, s in self.gradients.items())
        return total / max(weights, 1)


def kronecker_factors(expert: SingleTaskModel, given: MergeData, images: int) -> KroneckerFactors:
    """The factors of one expert, from at most `images` images, with one gradient for each.

    y is drawn from the expert's own predictions (`fisher.surprise`), as the Fisher information asks; no label is read.
    Layers that no prediction depends on are left out.

    Raises:
        SimoError: NaN or infinity in what reaches a layer, or in a gradient; the layer is named.

    Source: Martens and Grosse, arXiv 1503.05671, section 3, for layers that many tokens share.
    """
    model = copy.deepcopy(expert).to(given.device, torch.float32).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(given.seed)
    count = min(images, len(given.images))
    label = f"Kronecker factors: {expert.task.name}"
    with torch.enable_grad(), watch(model.encoder.vit) as seen, _watch_gradients(model.encoder.vit) as left:
        for batch in progress(first_images(given, count), count, label):
            pixels = batch.images.requires_grad_()  # so that a graph leads through weights that need no gradients
            with autocast(given.device, given.precision):
                loss = surprise(expert.task, model(pixels).float(), generator)
            torch.autograd.grad(loss, pixels)
    seen.check(label)
    left.check(f"{label}, gradients")
    return KroneckerFactors(
        {name: (seen.grams[name] / seen.tokens[name]).float().cpu() for name in left.grams},
        {name: (gram / count).float().cpu() for name, gram in left.grams.items()},
    )


@contextmanager
def _watch_gradients(module: nn.Module) -> Iterator[LayerInputs]:
    """Record the gradients of what linear layers give, as `watch` records what reaches them."""
    left = LayerInputs()
    layers = [(path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(_recorder(left, f"{path}.weight")) for path, layer in layers]
    try:
        yield left
    finally:
        for handle in handles:
            handle.remove()


def _recorder(left: LayerInputs, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def record(layer: nn.Module, args: Any, output: Tensor) -> None:
        output.register_hook(lambda gradient: left.add(name, gradient, left.grams))  # type: ignore[no-untyped-call]

    return record
