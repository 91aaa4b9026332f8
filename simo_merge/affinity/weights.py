"""Affinity from weights alone: how task vectors lie to each other, as a whole and layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_merge.affinity.layers import gather
from simo_merge.merging.parameter import Parameter
from simo_merge.merging.passes import Sources, kept_threads
from simo_merge.merging.spectral.svd import Svd, svd

State = Mapping[str, Tensor]
_EMPTY = torch.empty(0)


@dataclass(frozen=True)
class Overlap:
    """Sums over entries i of the task vectors of every pair, (T, T) float64; they add up over parameters.

    products: sum tau_s,i tau_t,i. sizes: sum |tau_s,i| |tau_t,i|. The cosine is `sign_agreement` * `energy_overlap`:
    what two vectors have in common is where they are large, and whether they then point the same way.
    """

    products: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Overlap:
        """The sums of task vectors (T, ...)."""
        flat = vectors.double().flatten(1)
        size = flat.abs()
        return cls(flat @ flat.T, size @ size.T)

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.products + other.products, self.sizes + other.sizes)

    def norms(self) -> Tensor:
        """|tau_t|, (T,)."""
        return self.products.diagonal().clamp_min(0).sqrt()

    def _scale(self) -> Tensor:
        """|tau_s| |tau_t|, (T, T): a root of products, so that the vector with itself comes out as exactly 1."""
        squares = self.products.diagonal().clamp_min(0)
        return torch.outer(squares, squares).sqrt()

    def cosine(self) -> Tensor:
        """tau_s . tau_t / (|tau_s| |tau_t|), in [-1, 1]: 1 for vectors of one direction, 0 for orthogonal ones.

        NaN where a task vector is 0. Source: Ilharco et al., arXiv 2212.04089.
        """
        return self._symmetric(self.products / self._scale()).clamp(-1, 1)

    def sign_agreement(self) -> Tensor:
        """sum tau_s tau_t / sum |tau_s| |tau_t|, in [-1, 1]: energy where signs agree less energy where they differ.

        It is 2 p - 1 with p the share of the common energy |tau_s,i tau_t,i| that lies where signs agree; 0 where no
        entry is common to both. NaN where a task vector is 0. Source: sign conflict as in Yadav et al., arXiv
        2306.01708, weighted by magnitude instead of trimmed.
        """
        common = self.products / self.sizes.clamp_min(torch.finfo(torch.float64).tiny)
        return self._symmetric(torch.where(self._scale() > 0, common, torch.nan)).clamp(-1, 1)

    def energy_overlap(self) -> Tensor:
        """sum |tau_s| |tau_t| / (|tau_s| |tau_t|), in [0, 1]: 1 where the same entries change, 0 where none is common.

        Independent normal entries give 2 / pi. NaN where a task vector is 0.
        """
        return self._symmetric(self.sizes / self._scale()).clamp(0, 1)

    def norm_ratio(self) -> Tensor:
        """The smaller norm over the larger, in [0, 1]: in a sum, vectors of one size do not drown each other.

        NaN where both are 0.
        """
        norms = self.norms()
        return torch.minimum(norms[:, None], norms) / torch.maximum(norms[:, None], norms)

    def _symmetric(self, values: Tensor) -> Tensor:
        """Rounding of a matrix product may tell [s, t] from [t, s]."""
        return (values + values.T) / 2


@dataclass(frozen=True)
class SubspaceOverlap:
    """How the leading singular subspaces of task matrices lie to each other; they add up over matrices.

    left, right: (T, T) sums over matrices of the mean squared cosine of the principal angles; NaN becomes no entry.
    matrices: (T, T), how many there are to divide by. interference, energy: (T, T), see `freedom`.
    """

    left: Tensor
    right: Tensor
    matrices: Tensor
    interference: Tensor
    energy: Tensor

    @classmethod
    def of(cls, vectors: Tensor, rank: int) -> SubspaceOverlap:
        """Of task matrices (T, m, n), from their `rank` leading directions, or half of all where these are fewer."""
        kept = max(1, min(rank, min(vectors.shape[1:]) // 2))
        parts = [_leading(svd(vector), kept) for vector in vectors]
        count = len(parts)
        sums = torch.zeros(5, count, count, dtype=torch.float64, device=vectors.device)
        for s, one in enumerate(parts):
            for t, other in enumerate(parts[s:], start=s):
                sums[:, s, t] = sums[:, t, s] = _pair(one, other)
        return cls(*sums)

    def __add__(self, other: SubspaceOverlap) -> SubspaceOverlap:
        return SubspaceOverlap(
            self.left + other.left,
            self.right + other.right,
            self.matrices + other.matrices,
            self.interference + other.interference,
            self.energy + other.energy,
        )

    def shared_outputs(self) -> Tensor:
        """|| U_s' U_t ||_F^2 / k, in [0, 1], mean over matrices: the mean squared cosine of the principal angles.

        U are the k leading left singular vectors: directions that a task vector writes to. 1: the same subspace, 0:
        orthogonal ones; k / m is chance. NaN where no matrix of one of them changed.
        """
        return self.left / self.matrices

    def shared_inputs(self) -> Tensor:
        """The same of the right singular vectors: directions that a task vector reads."""
        return self.right / self.matrices

    def freedom(self) -> Tensor:
        """Less of the interference of task singular vectors, relative to their singular values; 0 is none at all.

            - sum || (U'U - I) S (V'V - I) ||_1 / sum tr S,   U = [U_s U_t], S = diag(S_s, S_t), V = [V_s V_t],

        sums over matrices, the norm that of all entries. Orthogonal task vectors give 0, and equal ones -1: here what
        is shared counts against a pair, because a sum of both scales it up. Subspaces that are shared in other
        directions go below -1, for a norm of all entries grows where they are spread out; so does what chance gives
        with the rank. NaN where nothing changed.

        Source: singular task interference, Gargiulo et al., arXiv 2412.00081 (task singular vectors).
        """
        return -self.interference / self.energy


def overlaps(sources: Sources) -> tuple[Overlap, dict[str, Overlap]]:
    """The overlap of all task vectors, in one pass over the parameters; then that of each layer and kind of module."""
    with kept_threads(), torch.no_grad():
        return gather(_overlap_of_each(sources))


def subspace_overlaps(sources: Sources, rank: int) -> tuple[SubspaceOverlap, dict[str, SubspaceOverlap]]:
    """The same of the leading singular subspaces of all matrices."""
    with kept_threads(), torch.no_grad():
        return gather(_subspaces_of_each(sources, rank))


def _overlap_of_each(sources: Sources) -> Iterator[tuple[Parameter, Overlap]]:
    results = sources.map(lambda p: (_without_values(p), Overlap.of(p.vectors)), "affinity: task vectors")
    return (result for _, result in results)


def _subspaces_of_each(sources: Sources, rank: int) -> Iterator[tuple[Parameter, SubspaceOverlap]]:
    def compute(parameter: Parameter) -> tuple[Parameter, SubspaceOverlap] | None:
        if parameter.base.ndim != 2 or min(parameter.base.shape) < 2:
            return None
        return _without_values(parameter), SubspaceOverlap.of(parameter.vectors, rank)

    results = sources.map(compute, "affinity: singular subspaces")
    return (result for _, result in results if result is not None)


def _without_values(parameter: Parameter) -> Parameter:
    """What tells where a parameter belongs: nothing that would keep all experts in memory."""
    return Parameter(parameter.name, _EMPTY, (), parameter.layer, parameter.layers)


def _leading(found: Svd, kept: int) -> Svd:
    rank = min(kept, int((found.s > 0).sum()))
    return Svd(found.u[:, :rank], found.s[:rank], found.vh[:rank])


def _pair(one: Svd, other: Svd) -> Tensor:
    """left, right, matrices, interference and energy of two task matrices.

    Their own singular vectors are orthonormal, so U'U - I has A = U_s' U_t beside its diagonal only, and V'V - I has
    B = V_s' V_t: the product has the blocks A S_t B' and A' S_s B.
    """
    u, v = one.u.T @ other.u, one.vh @ other.vh.T  # (k_s, k_t) both
    ranks = (len(one.s) * len(other.s)) ** 0.5
    interference = ((u * other.s) @ v.T).abs().sum() + ((u.T * one.s) @ v).abs().sum()
    shared = (
        [u.square().sum() / ranks, v.square().sum() / ranks, one.s.new_ones(())] if ranks else [u.new_zeros(())] * 3
    )
    return torch.stack([*shared, interference, one.s.sum() + other.s.sum()])
