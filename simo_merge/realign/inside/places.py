"""The layers of a block that can be fitted, and where in the block a fit is judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from simo_merge.errors import SimoError

OUTPUT = "output"  # of the block: the residual stream behind it


@dataclass(frozen=True)
class Place:
    """A layer, and where the block's features are compared with the experts'.

    layer: its name in the block. compared: the module whose input is compared (`norm2` reads the residual stream
    behind the attention), `OUTPUT`, or None for the layer's own output.
    gains: names of the factors between the layer's output and the residual stream; the first that the block has.
    """

    layer: str
    compared: str | None = None
    gains: tuple[str, ...] = ()

    @property
    def at(self) -> str:
        """What is recorded there goes by this name."""
        return self.compared or f"{self.layer}.{OUTPUT}"


PLACES = {
    place.layer: place
    for place in (
        Place("norm1"),
        Place("attn.qkv"),
        Place("attn.proj", "norm2", ("ls1.gamma", "gamma_1")),
        Place("norm2"),
        Place("mlp.fc1"),
        Place("mlp.fc2", OUTPUT, ("ls2.gamma", "gamma_2")),
    )
}
"""In the order in which a block runs them."""


def places_in(block: nn.Module, layers: Sequence[str]) -> list[Place]:
    """The places of some layers of a block, in its order.

    Raises:
        SimoError: a block without one of the layers (it is of another kind than timm's plain ViT).
    """
    modules = dict(block.named_modules())
    for name in layers:
        if not isinstance(modules.get(name), nn.Linear | nn.LayerNorm):
            raise SimoError(
                f"the encoder's blocks ({type(block).__name__}) have no layer {name!r} that can be fitted; give others "
                f"of {', '.join(PLACES)}"
            )
    return [place for name, place in PLACES.items() if name in layers]


def refuse_without_bias(block: nn.Module, places: Iterable[Place]) -> None:
    """Refuse layers that a least-squares change cannot be written to, because they add no bias of their own.

    Raises:
        SimoError: it names the layer.
    """
    for place in places:
        if getattr(block.get_submodule(place.layer), "bias", None) is None:
            raise SimoError(
                f"{place.layer} of the encoder's blocks ({type(block).__name__}) has no bias, and what is solved for a "
                "layer is a weight and a bias; leave it out of the layers"
            )


def gain(block: nn.Module, place: Place) -> Tensor | None:
    """The factor (C,) between a layer's output and the residual stream, float64; None where there is none."""
    parameters = dict(block.named_parameters())
    found = next((parameters[name] for name in place.gains if name in parameters), None)
    return None if found is None else found.detach().double()


@dataclass
class Seen:
    """What one run of a block recorded, by name: inputs of layers, and values at the places of comparison."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def watched(block: nn.Module, places: list[Place]) -> Iterator[Seen]:
    """Record, each time the block runs, what the layers of these places read and what is compared there."""
    seen = Seen()
    handles = []
    for place in places:
        layer = block.get_submodule(place.layer)

        def read(module: nn.Module, args: Any, name: str = place.layer) -> None:
            seen.inputs[name] = _normalised(module, args[0])

        handles.append(layer.register_forward_pre_hook(read))
        if place.compared is None:

            def gave(module: nn.Module, args: Any, output: Tensor, name: str = place.at) -> None:
                seen.values[name] = output

            handles.append(layer.register_forward_hook(gave))
        elif place.compared != OUTPUT:

            def reached(module: nn.Module, args: Any, name: str = place.at) -> None:
                seen.values[name] = args[0]

            handles.append(block.get_submodule(place.compared).register_forward_pre_hook(reached))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _normalised(layer: nn.Module, tokens: Tensor) -> Tensor:
    """What a layer's weight is multiplied with: a LayerNorm's reads what is normalised already."""
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(tokens, layer.normalized_shape, eps=layer.eps)
    return tokens
