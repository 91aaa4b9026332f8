"""Regression mean: every linear layer is fitted to what the experts' layers answer to their own inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.device import autocast
from simo_merge.merging.from_images.layer_inputs import LayerFit, layer_inputs, on_device, watch
from simo_merge.merging.from_images.least_squares import NormalEquations
from simo_merge.merging.method import MergeData
from simo_merge.merging.options import above_zero, share
from simo_merge.models import Encoder
from simo_merge.models.blocks import Beside, block_inputs, run_block
from simo_merge.progress import progress
from simo_merge.scoring import BATCH_SIZE, batches


def damped(gram: Tensor, off_diagonal: float) -> Tensor:
    """The matrix with everything off the diagonal multiplied by `off_diagonal`."""
    return off_diagonal * gram + (1 - off_diagonal) * torch.diag(gram.diagonal())


def mean_state(encoders: list[Encoder]) -> dict[str, Tensor]:
    """The mean of the experts' floating-point tensors, in float32 or wider; the first expert's others."""
    states = [encoder.vit.state_dict() for encoder in encoders]

    def mean(name: str, first: Tensor) -> Tensor:
        wide = torch.promote_types(first.dtype, torch.float32)
        return torch.stack([state[name].to(wide) for state in states]).mean(dim=0)

    return {name: mean(name, first) if first.is_floating_point() else first for name, first in states[0].items()}


class GramFit(LayerFit):
    """A method that fits linear layers to the Gram matrices of what reaches them in each expert.

    off_diagonal: what elements off the diagonal of a Gram matrix are multiplied with, 0 to 1.
    """

    off_diagonal: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "off_diagonal", share(self.name, "off_diagonal", self.off_diagonal, zero=True))

    @abstractmethod
    def fitted(self, equation: NormalEquations, mean: Tensor) -> Tensor:
        """The merged weight (out, in), from the normal equations of its distance from the experts' mean."""

    def observe(self, given: MergeData) -> dict[str, Tensor]:
        """The merged weights of the linear layers, by name."""
        mean = mean_state([expert.encoder for expert in given.experts])
        equations: dict[str, NormalEquations] = {}
        for expert in given.experts:
            seen = layer_inputs(expert.encoder, given, f"layer inputs: {expert.task.name}")
            self.add(equations, seen.grams, expert.encoder, mean)
        return {name: self.fitted(equation, mean[name]) for name, equation in equations.items()}

    def add(
        self,
        equations: dict[str, NormalEquations],
        grams: Mapping[str, Tensor],
        encoder: Encoder,
        mean: Mapping[str, Tensor],
    ) -> None:
        """Add what one expert asks for to the equations of the layers in `grams`."""
        for name, gram in grams.items():
            moved = (encoder.vit.get_parameter(name).detach().double() - mean[name].double()).to(gram.device)
            equations.setdefault(name, NormalEquations.empty(moved)).add(damped(gram, self.off_diagonal), moved)


@dataclass(frozen=True)
class RegMean(GramFit):
    """RegMean: the weights whose answers are nearest to those of each expert's layer to its own inputs.

    For each linear layer with weights W_t (out, in) and inputs X_t (n, in), and their Gram matrices G_t = X_t' X_t
    with off-diagonal elements multiplied by `off_diagonal`,

        W = (sum_t W_t G_t) (sum_t G_t)^-1,

    which minimises sum_t ||X_t (W - W_t)'||^2 where off_diagonal is 1. All other parameters (biases, norms, patch and
    position embedding) are averaged.

    It is solved for W - mean_t W_t in float64, with `ridge` times the mean eigenvalue added to sum_t G_t. Where the
    inputs say nothing (dead channels, fewer tokens than channels) the weights are the average.

    off_diagonal: 0 to 1; the paper's alpha, 0.9 there.
    ridge: above 0.

    Raises:
        SimoError: an option out of range; when it sees images, NaN in what reaches a layer.

    Source: Jin et al., arXiv 2212.09849, closed form and scaling of off-diagonal elements.
    """

    name: ClassVar[str] = "regmean"
    off_diagonal: float = 0.9
    ridge: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ridge", above_zero(self.name, "ridge", self.ridge))

    def fitted(self, equation: NormalEquations, mean: Tensor) -> Tensor:
        """The merged weight (out, in)."""
        return (mean.double() + equation.solve(self.ridge).to(mean.device)).to(mean.dtype)


@dataclass(frozen=True)
class RegMeanPlusPlus(RegMean):
    """RegMean++: RegMean with the inputs that the merged model's earlier blocks will give.

    Blocks are merged in order. For block l, the images' tokens h_{l-1} come out of the merged blocks before it; every
    expert's own block l reads them, and what reaches its linear layers there gives the G_t of RegMean. The block is
    merged, and h_l is what it makes of h_{l-1}.

    Options, the ridge and what is averaged are those of RegMean. The tokens of all images at one block are kept in
    memory (images x tokens x channels x 4 bytes); every block of every expert runs once.

    Raises:
        SimoError: an option out of range; when it sees images, NaN in what reaches a layer.

    Source: Nguyen et al., arXiv 2508.03121, and the port of the authors' code in fusion_bench.
    """

    name: ClassVar[str] = "regmean-plus-plus"

    def observe(self, given: MergeData) -> dict[str, Tensor]:
        """The merged weights of the linear layers, by name."""
        experts = [on_device(expert.encoder, given.device) for expert in given.experts]
        merged = on_device(experts[0], given.device)
        mean = mean_state(experts)
        merged.vit.load_state_dict(mean)
        fitted: dict[str, Tensor] = {}
        depth = merged.taps[-1] + 1
        with torch.no_grad():
            tokens, beside = _what_reaches_blocks(merged, given)
            for index in progress(range(depth), depth, "merging block after block"):
                equations: dict[str, NormalEquations] = {}
                for expert in experts:
                    self.add(equations, _grams_in_block(expert, index, tokens, beside, given), expert, mean)
                for name, equation in equations.items():
                    fitted[name] = self.fitted(equation, mean[name])
                    merged.vit.get_parameter(name).copy_(fitted[name])
                tokens = _through_block(merged, index, tokens, beside, given)
        return fitted


def _what_reaches_blocks(encoder: Encoder, given: MergeData) -> tuple[list[Tensor], list[Sequence[Beside]]]:
    """The tokens (B, N, C) before the first block, on the CPU; and for every block what it is given beside tokens.

    Both are lists of one entry for each batch of images.
    """
    tokens: list[Tensor] = []
    beside: list[Sequence[Beside]] = []
    for batch in batches(given.images, BATCH_SIZE):
        with autocast(given.device, given.precision):
            found = block_inputs(encoder, batch.images.to(given.device))
        tokens.append(found.tokens.float().cpu())
        beside.append(found.beside)
    return tokens, beside


def _grams_in_block(
    encoder: Encoder, index: int, tokens: list[Tensor], beside: list[Sequence[Beside]], given: MergeData
) -> dict[str, Tensor]:
    name = f"blocks.{index}"
    with watch(encoder.vit.get_submodule(name), prefix=name) as seen:
        _through_block(encoder, index, tokens, beside, given)
    seen.check(f"merging block {index}")
    return seen.grams


def _through_block(
    encoder: Encoder, index: int, tokens: list[Tensor], beside: list[Sequence[Beside]], given: MergeData
) -> list[Tensor]:
    block = encoder.vit.get_submodule(f"blocks.{index}")
    with autocast(given.device, given.precision):
        pairs = zip(tokens, beside, strict=True)
        return [run_block(block, part.to(given.device), options[index]).float().cpu() for part, options in pairs]
