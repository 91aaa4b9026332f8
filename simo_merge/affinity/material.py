"""What measures are computed from: each piece is computed when a measure asks for it, and once for all of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

from simo_merge.affinity.agreement import CrossAgreement
from simo_merge.affinity.explained import Fit, explained_by_pairs
from simo_merge.affinity.gradients import GradientAffinity, gradient_affinity
from simo_merge.affinity.options import AffinityOptions
from simo_merge.affinity.seen import Part, Seen, parts, see
from simo_merge.affinity.sweep import LambdaSweep, swept
from simo_merge.affinity.transfer import Decoders, transfer_scores
from simo_merge.affinity.weights import Overlap, SubspaceOverlap, overlaps, subspace_overlaps
from simo_merge.data import DenseDataset
from simo_merge.merging import merge
from simo_merge.merging.from_images.layer_inputs import on_device
from simo_merge.merging.merge import encoder_labels
from simo_merge.merging.passes import Sources
from simo_merge.models import Encoder, SingleTaskModel
from simo_merge.realign import Features
from simo_merge.weights import Base


@dataclass(frozen=True)
class Material:
    """T experts of one base, images, and what was found of them.

    experts: on the CPU, with the base's grid. images: unlabelled. labelled: of no test split.
    asks_decoders: whether cross-task agreement is wanted too when the images are looked at.
    known_sweep: where it was made before.
    """

    experts: tuple[SingleTaskModel, ...]
    base: Base
    images: DenseDataset | None
    labelled: DenseDataset | None
    options: AffinityOptions
    device: torch.device
    precision: str = "float32"
    seed: int = 0
    asks_decoders: bool = True
    known_sweep: LambdaSweep | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """T names."""
        return tuple(expert.task.name for expert in self.experts)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Which blocks the taps read."""
        return self.experts[0].encoder.taps

    @cached_property
    def _sources(self) -> Sources:
        states = [expert.encoder.vit.state_dict() for expert in self.experts]
        return Sources(self.base.vit.state_dict(), states, encoder_labels(self.tasks))

    @cached_property
    def overlaps(self) -> tuple[Overlap, dict[str, Overlap]]:
        """Of the task vectors."""
        return overlaps(self._sources)

    @cached_property
    def subspaces(self) -> tuple[SubspaceOverlap, dict[str, SubspaceOverlap]]:
        """Of their leading singular subspaces."""
        return subspace_overlaps(self._sources, self.options.rank)

    @cached_property
    def looked(self) -> tuple[dict[str, Seen], Tensor | None]:
        """What every expert's encoder makes of the images, and cross-task agreement where it is wanted."""
        assert self.images is not None
        encoders = {e.task.name: on_device(e.encoder, self.device) for e in self.experts}
        like = self.experts[0].encoder
        base = on_device(Encoder(self.base.vit, like.name, like.taps), self.device)
        heads = [_head(expert, self.device) for expert in self.experts] if self.asks_decoders else []
        agreement = CrossAgreement(heads, self.options.batch_size, self.precision)
        found: dict[str, Seen] = {}
        step = self._step(self.options.decoded_images)
        for part in parts(self.images):
            features = {}
            for task, encoder in encoders.items():
                features[task], new = self._see(encoder, part, f"features: {task}")
                found[task] = found[task] + new if task in found else new
            asked = slice(-part.run.start % step, None, step)
            if heads and len(part.run[asked]):
                from_base, _ = self._see(base, Part(self.images, part.run[asked]), "features: base")
                agreement.add(from_base, {task: each.subset(asked) for task, each in features.items()})
        return found, agreement.values() if heads else None

    @property
    def seen(self) -> dict[str, Seen]:
        """What every expert's encoder makes of the images."""
        return self.looked[0]

    @property
    def fit(self) -> Fit:
        """How experts' features are predicted from other experts'."""
        return Fit(None, self.options.ridge, self.options.folds)

    @cached_property
    def merged_pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Explained variance of the experts' features from each merged pair's, before and after surgery."""
        assert self.images is not None
        seen = {task: one.every(self._step(self.options.pair_images)) for task, one in self.seen.items()}
        fit = Fit(self.options.surgery_rank, self.options.ridge, self.options.folds)
        return explained_by_pairs(self._pairs(), seen, fit)

    @property
    def pair_images(self) -> int:
        """How many images each merged pair sees."""
        assert self.images is not None
        return len(range(0, len(self.images), self._step(self.options.pair_images)))

    @property
    def decoded_images(self) -> int:
        """How many images decoders are asked about."""
        assert self.images is not None
        return len(range(0, len(self.images), self._step(self.options.decoded_images)))

    def _step(self, wanted: int | None) -> int:
        """The distance from one image to the next, so that no more are taken than wanted."""
        assert self.images is not None
        return -(-len(self.images) // (wanted or len(self.images)))

    def _pairs(self) -> Iterator[tuple[tuple[str, str], Features]]:
        assert self.images is not None
        for one, other in combinations(self.experts, 2):
            pair = one.task.name, other.task.name
            model = merge(
                (one, other), self.options.merge, self.base, self.images, self.device, self.precision, self.seed
            )
            encoder = on_device(model.encoder, self.device)
            seen: Seen | None = None
            for part in parts(self.images, self._step(self.options.pair_images)):
                _, new = self._see(encoder, part, f"features: {' + '.join(pair)} merged")
                seen = new if seen is None else seen + new
            assert seen is not None
            yield pair, seen.features

    @cached_property
    def _decoders(self) -> Decoders:
        assert self.labelled is not None
        return Decoders(self.experts, self.labelled, self.device, self.precision, self.options.batch_size)

    @cached_property
    def transfer(self) -> tuple[Tensor, Tensor]:
        """The metric of every decoder on the base's encoder, (T,), and on every expert's, (T, T)."""
        return transfer_scores(self._decoders, self.experts, self.base)

    @cached_property
    def sweep(self) -> LambdaSweep:
        """Every decoder along every task vector."""
        if self.known_sweep is not None:
            return self.known_sweep
        return swept(self.experts, self.base, self.options.lambdas, self._decoders, self.transfer)

    @cached_property
    def gradients(self) -> GradientAffinity:
        """Steps at the base, with the experts' decoders."""
        assert self.labelled is not None
        model = self._decoders.model
        model.encoder.vit.load_state_dict(self.base.vit.state_dict())
        length = self.options.step * float(self.overlaps[0].norms().mean())
        return gradient_affinity(model, self.labelled, length, self.options.gradient_batches, self.options.batch_size)

    @property
    def gradient_images(self) -> int:
        """How many labelled images gradients are taken on."""
        assert self.labelled is not None
        return min(len(self.labelled), self.options.gradient_batches * self.options.batch_size)

    def _see(self, encoder: Encoder, part: Part, label: str) -> tuple[Features, Seen]:
        options = self.options
        return see(encoder, part, options.tokens, options.batch_size, self.precision, self.seed, label)


def _head(expert: SingleTaskModel, device: torch.device) -> SingleTaskModel:
    """The expert on the device, in evaluation mode; the one given stays where it is."""
    return copy.deepcopy(expert).to(device).eval()
