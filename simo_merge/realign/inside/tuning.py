"""Shared changes inside the encoder fitted by gradients: low-rank adapters of its layers, and its LayerNorms."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from simo_merge.data import DenseDataset
from simo_merge.errors import SimoError
from simo_merge.models import Encoder, MultiTaskModel
from simo_merge.models.blocks import used_blocks
from simo_merge.progress import progress
from simo_merge.realign.inside.places import PLACES, places_in
from simo_merge.realign.inside.shares import check_prefix, task_weights
from simo_merge.realign.inside.streams import Stream
from simo_merge.realign.inside.tap_errors import TapErrors
from simo_merge.realign.realignment import Calibration, Realignment, check_rank, fitted_images, short

_LOG = logging.getLogger(__name__)

ADAPTED = tuple(name for name in PLACES if not name.startswith("norm"))


class LowRank(nn.Module):
    """W -> W + up down, the weight (out, in) of a layer with an adapter of rank r; a fresh one changes nothing."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self.down = nn.Parameter(torch.empty(rank, in_features, device=weight.device))
        self.up = nn.Parameter(torch.zeros(out_features, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + self.up @ self.down


@dataclass(frozen=True)
class EncoderTuning(Realignment):
    """A change of the encoder that all tasks share, fitted by Adam to the experts' features at the taps.

    The loss is the mean over taps of squared differences to each expert in units of its deviation, weighted over
    tasks (`TapErrors`). Batches are those in which the images are read, in an order drawn anew every epoch. A share of
    the images is held out: after each epoch the error on them is measured, the best epoch's change is kept (none, if
    none was better), and the fit ends after `patience` epochs without a better one. The record tells the held-out
    error of every epoch, summed over taps, and which was kept. From a single image nothing can be held out, and
    nothing is changed.

    epochs, lr, patience, held_out, weights, prefix: as said; weights and prefix as in `EncoderCalibration`.
    """

    changes_encoder: ClassVar[bool] = True
    epochs: int = 30
    lr: float = 1e-3
    patience: int = 3
    held_out: float = 0.2
    weights: Mapping[str, float] | None = None
    prefix: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1 or self.patience < 1 or not 0 < self.lr < math.inf:
            raise SimoError(
                f"{self.name} takes epochs and patience of 1 or more and a positive lr, got {self.epochs}, "
                f"{self.patience}, {self.lr}"
            )
        fitted_images(1, self.held_out)
        check_prefix(self.prefix)

    @abstractmethod
    def open(self, blocks: Sequence[nn.Module]) -> list[nn.Parameter]:
        """The parameters to fit, made part of the blocks."""

    def close(self, blocks: Sequence[nn.Module]) -> None:
        """Fold what was fitted into the blocks' own weights."""

    def check(self, model: MultiTaskModel, images: DenseDataset) -> None:
        """Refuse weights of unknown tasks."""
        task_weights(self.weights, list(model.tasks))

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Fit, keep the best epoch, and fold."""
        weights = task_weights(self.weights, list(model.tasks))
        first = fitted_images(len(given.images), self.held_out)
        if first < 1:
            given.record["epochs_held_out"] = []
            _LOG.warning("%s: of one image none can be held out, so the encoder stays as it was", self.name)
            return 0
        torch.manual_seed(given.seed)  # initial weights
        encoder = model.encoder.to(given.device).eval().requires_grad_(False)
        fitted_to = self._errors(encoder, given, weights, range(first))
        held_out = self._errors(encoder, given, weights, range(first, len(given.images)))
        blocks = used_blocks(encoder)
        parameters = self.open(blocks)
        errors, kept = tune(parameters, fitted_to, held_out, self.epochs, self.lr, self.patience, given.seed, self.name)
        self.close(blocks)
        encoder.requires_grad_(True)
        given.record["epochs_held_out"] = [short(error) for error in errors]
        given.record["epochs_kept"] = kept
        return sum(parameter.numel() for parameter in parameters) if kept else 0

    def _errors(self, encoder: Encoder, given: Calibration, weights: Mapping[str, float], which: range) -> TapErrors:
        features = given.features.subset(slice(which.start, which.stop))
        prefix = float(features.merged.patches[0].shape[1]) if self.prefix is None else self.prefix
        return TapErrors.of(
            Stream.of(encoder, given.images, which, given.device), features, encoder.taps, weights, prefix
        )


def tune(
    parameters: Sequence[nn.Parameter],
    fitted_to: TapErrors,
    held_out: TapErrors,
    epochs: int,
    lr: float,
    patience: int,
    seed: int,
    label: str,
) -> tuple[list[float], int]:
    """Minimise the error at the taps by Adam, and leave the parameters as the best epoch had them.

    Returns:
        The held-out error before the first epoch and after each, and how many epochs were kept.
    """
    optimizer = torch.optim.Adam(parameters, lr=lr)
    generator = torch.Generator().manual_seed(seed)
    errors, kept, best = [sum(held_out.errors(0))], 0, _copies(parameters)
    parts = fitted_to.stream.tokens
    for epoch in progress(range(1, epochs + 1), epochs, label):
        for part in torch.randperm(len(parts), generator=generator).tolist():
            loss = torch.stack(fitted_to.batch(part, 0)).mean() / len(parts[part])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        errors.append(sum(held_out.errors(0)))
        if errors[-1] < errors[kept]:
            kept, best = epoch, _copies(parameters)
        elif epoch - kept >= patience:
            break
    with torch.no_grad():
        for parameter, value in zip(parameters, best, strict=True):
            parameter.copy_(value)
    return errors, kept


def _copies(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


@dataclass(frozen=True)
class EncoderAdapters(EncoderTuning):
    """Low-rank adapters of the encoder's linear layers, shared by all tasks, folded into the weights when fitted.

    rank: of each layer's adapter. layers: which of `ADAPTED`.

    Source: shared adapters of rank 16 in every block are the SIMO paper's representation re-alignment (arXiv
    2504.11268, section 5), there of the block's whole (f(x) + B A x) and trained with the decoders on labels. Here
    they are the layers' (W + B A, arXiv 2106.09685), so that inference pays nothing, and fitted to the experts'
    features without labels.
    """

    name: ClassVar[str] = "encoder-adapters"
    rank: int = 16
    layers: Sequence[str] = ADAPTED

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank, 1.0)
        object.__setattr__(self, "layers", (self.layers,) if isinstance(self.layers, str) else tuple(self.layers))
        unknown = [name for name in self.layers if name not in ADAPTED]
        if unknown or not self.layers:
            raise SimoError(f"layers with adapters are of {', '.join(ADAPTED)}; got {', '.join(unknown) or 'none'}")

    def parameters(self) -> dict[str, object]:
        """The options, as plain JSON values."""
        return {**super().parameters(), "layers": list(self.layers)}

    def open(self, blocks: Sequence[nn.Module]) -> list[nn.Parameter]:
        """An adapter for each layer."""
        found: list[nn.Parameter] = []
        for layer in self._layers(blocks):
            weight = layer.weight
            assert isinstance(weight, Tensor)
            adapter = LowRank(weight, min(self.rank, *weight.shape))
            parametrize.register_parametrization(layer, "weight", adapter)
            found += [adapter.down, adapter.up]
        return found

    def close(self, blocks: Sequence[nn.Module]) -> None:
        """W + up down becomes the weight."""
        for layer in self._layers(blocks):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)

    def _layers(self, blocks: Sequence[nn.Module]) -> list[nn.Module]:
        return [b.get_submodule(place.layer) for b in blocks for place in places_in(b, self.layers)]


@dataclass(frozen=True)
class EncoderNorms(EncoderTuning):
    """Scale and shift of the encoder's LayerNorms, shared by all tasks."""

    name: ClassVar[str] = "encoder-norms"

    def open(self, blocks: Sequence[nn.Module]) -> list[nn.Parameter]:
        """Weights and biases of `norm1` and `norm2` of every block."""
        norms = [b.get_submodule(place.layer) for b in blocks for place in places_in(b, ("norm1", "norm2"))]
        parameters = [parameter for norm in norms for parameter in norm.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        return parameters
