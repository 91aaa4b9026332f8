"""Forward-order calibration of the merged encoder's weights, in closed form, for all tasks at once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor

from simo_merge.data import DenseDataset
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel
from simo_merge.models.blocks import used_blocks
from simo_merge.progress import progress
from simo_merge.realign.inside.places import OUTPUT, PLACES, Place, gain, places_in, refuse_without_bias, watched
from simo_merge.realign.inside.shares import check_prefix, task_weights
from simo_merge.realign.inside.solve import apply, layer_moments, solve
from simo_merge.realign.inside.streams import Stream
from simo_merge.realign.inside.tap_errors import TapErrors
from simo_merge.realign.realignment import Calibration, Realignment, check_rank, fitted_images, short

_LOG = logging.getLogger(__name__)

SHARES = (1.0, 0.5)  # of a block's change that are tried
State = Mapping[str, Tensor]  # of a block


@dataclass(frozen=True)
class EncoderCalibration(Realignment):
    """The merged encoder's layers, solved one after the other towards the mean of the experts' features.

    From the first block to the last, on the tokens that the blocks calibrated before give, each of `layers` gets the
    change of least squared error behind it (`solve.solve_linear`), A what the layer reads there:

        sum over tokens || y - s - gain * (dW A + db) ||^2 + ridge || gain * dW scaled ||^2,   y = sum_t w_t y_t.

    For the layers that write to the residual stream (`attn.proj`, `mlp.fc2`) s is the stream behind the attention or
    the block and y_t the one of expert t, so that a block also takes back what those before it have left; for the
    others they are the layer's own output and the expert's. All tasks read the same image, hence one target: of all
    features the weighted mean is nearest to the experts'. What each task is still away from it is left to an aligner
    behind the tap (`realign` takes a calibrated model). The changes are the weights': inference costs what it did.

    A share of the images is held out. A block's changes are kept where the error at the taps behind it, over all
    tasks and on those images, falls; else they are halved, and if that does not help either, dropped. From a single
    image nothing can be held out, and nothing is changed.

    layers: which of `places.PLACES`, solved in the order in which a block runs them. ridge: relative to unit
    variance; it draws to the merged weights. weights: of the tasks by name, those left out 1; only their ratios count.
    held_out: share of the images, the last. prefix: how many patches a prefix token counts for; None: all patches of
    its image together, as for aligners.

    The tokens of all images before one block are kept for T + 1 encoders. Every block runs three times or so.

    Raises:
        SimoError: an option out of range, weights of a task that the model does not have, or blocks without a layer.

    Source: closed forms in forward order on the calibrated model's own activations are FeatCal's (arXiv 2605.13030;
    ridge towards a combination of merged and base weights there) and, with Gram matrices, RegMean++'s (arXiv
    2508.03121); targets that are the experts' layer outputs FeatCal's and LOT's (arXiv 2505.23859). Ours: the residual
    stream as the target, one target for tasks that share the image, and the choice by held-out taps.
    """

    name: ClassVar[str] = "encoder-calibration"
    changes_encoder: ClassVar[bool] = True
    layers: Sequence[str] = ("attn.proj", "mlp.fc2")
    ridge: float = 0.1
    weights: Mapping[str, float] | None = None
    held_out: float = 0.2
    prefix: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", (self.layers,) if isinstance(self.layers, str) else tuple(self.layers))
        unknown = [name for name in self.layers if name not in PLACES]
        if unknown or not self.layers:
            raise SimoError(f"layers to calibrate are of {', '.join(PLACES)}; got {', '.join(unknown) or 'none'}")
        check_rank(1, self.ridge)
        fitted_images(1, self.held_out)
        check_prefix(self.prefix)

    def parameters(self) -> dict[str, Any]:
        """The options, as plain JSON values."""
        return {**super().parameters(), "layers": list(self.layers)}

    def check(self, model: MultiTaskModel, images: DenseDataset) -> None:
        """Refuse weights of unknown tasks, and layers without bias."""
        task_weights(self.weights, list(model.tasks))
        for block in used_blocks(model.encoder):
            refuse_without_bias(block, places_in(block, self.layers))

    def fit(self, model: MultiTaskModel, given: Calibration) -> int:
        """Solve block after block."""
        weights = task_weights(self.weights, list(model.tasks))
        first = fitted_images(len(given.images), self.held_out)
        if first < 1:
            given.record["blocks"] = []
            return 0
        walk = _Walk.of(self, model, given, weights, first)
        fitted, rows = 0, []
        for index in progress(range(len(walk.stream.blocks)), len(walk.stream.blocks), "calibrating block after block"):
            row, count = walk.block(index)
            rows.append(row)
            fitted += count
        given.record["blocks"] = rows
        return fitted


@dataclass
class _Walk:
    """The calibrated model and the experts on their way through the blocks, side by side."""

    method: EncoderCalibration
    stream: Stream
    experts: Mapping[str, Stream]
    held_out: TapErrors
    weights: Mapping[str, float]
    prefix: int
    errors: list[float]

    @classmethod
    def of(
        cls,
        method: EncoderCalibration,
        model: MultiTaskModel,
        given: Calibration,
        weights: Mapping[str, float],
        first: int,
    ) -> _Walk:
        device, images = given.device, given.images
        encoder = model.encoder.to(device).eval()
        experts = {}
        for task in weights:
            theirs = copy.deepcopy(given.experts[task].encoder).to(device).eval()
            experts[task] = Stream.of(theirs, images, range(first), device)
        patches = given.features.merged.patches[0].shape[1]
        prefix_weight = float(patches) if method.prefix is None else method.prefix
        held_out = Stream.of(encoder, images, range(first, len(images)), device)
        errors = TapErrors.of(held_out, given.features.subset(slice(first, None)), encoder.taps, weights, prefix_weight)
        stream = Stream.of(encoder, images, range(first), device)
        return cls(method, stream, experts, errors, weights, encoder.prefix_tokens, errors.errors(0))

    def block(self, index: int) -> tuple[dict[str, Any], int]:
        """Calibrate a block and go through it; what the record says of it, and how many numbers were fitted."""
        block = self.stream.blocks[index]
        places = places_in(block, self.method.layers)
        targets = self._targets(index, places)
        before = {name: value.detach().clone() for name, value in block.state_dict().items()}
        fitted = sum(self._fit(index, place, targets) for place in places)
        after = {name: value.detach().clone() for name, value in block.state_dict().items()}
        kept, errors = self._choose(index, before, after)
        row = {
            "block": index,
            "kept": kept,
            "held_out_before": [short(error) for error in self.errors],
            "held_out": [short(error) for error in errors],
        }
        _LOG.info(
            "block %d: %g of the change kept, held-out error %.5g -> %.5g", index, kept, sum(self.errors), sum(errors)
        )
        self.errors = errors[1:] if index in self.held_out.taps else errors
        self.stream.advance(index)
        self.held_out.stream.advance(index)
        return row, fitted if kept else 0

    def _targets(self, index: int, places: list[Place]) -> list[dict[str, Tensor]]:
        """For each batch and place of comparison the experts' weighted mean; the experts go through the block."""
        means: list[dict[str, Tensor]] = []
        for task, weight in self.weights.items():
            found = self.experts[task].watch_and_advance(index, places)
            if not means:
                means = [{at: torch.zeros_like(value) for at, value in values.items()} for values in found]
            for mean, values in zip(means, found, strict=True):
                for at, value in values.items():
                    mean[at].add_(value, alpha=weight)
        return means

    def _fit(self, index: int, place: Place, targets: list[dict[str, Tensor]]) -> int:
        """Solve one layer and change it; how many numbers it has."""
        block, prefix = self.stream.blocks[index], self.prefix
        layer, moments = block.get_submodule(place.layer), []
        with torch.no_grad(), watched(block, [place]) as seen:
            for part, target in enumerate(targets):
                seen.values[OUTPUT] = self.stream.run(index, part)
                wanted = target[place.at].to(self.stream.device) - seen.values[place.at].float()
                moments.append(
                    layer_moments(seen.inputs[place.layer].float(), wanted, prefix, self.held_out.prefix_weight)
                )
        return apply(layer, solve(layer, reduce(add, moments), self.method.ridge, gain(block, place)))

    def _choose(self, index: int, before: State, after: State) -> tuple[float, list[float]]:
        """Write the largest of the whole change, half of it and none that does not raise the held-out error."""
        block = self.stream.blocks[index]
        for share in SHARES:
            block.load_state_dict({name: torch.lerp(old, after[name], share) for name, old in before.items()})
            errors = self.held_out.errors(index)
            if sum(errors) < sum(self.errors):
                return share, errors
        block.load_state_dict(before)
        return 0.0, self.errors
