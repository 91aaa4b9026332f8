"""Isotropic merging: every direction of the merged task vector gets the same strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.merging.options import share
from simo_merge.merging.spectral.svd import MatrixMethod, svd, whiten


@dataclass(frozen=True)
class IsoC(MatrixMethod):
    """Iso-C: the sum of the task vectors with a flat spectrum.

    For each matrix (m, n), with sum_t tau_t = U diag(s) V' and r = min(m, n),

        merged = theta_0 + scale * mean(s_1 ... s_r) U V'.

    Parameters that are no matrices are averaged. Directions with a singular value of zero stay out.

    scale: alpha; the paper chooses it on a validation split, its code starts from 1.

    Raises:
        SimoError: a scale that is not finite.

    Source: Marczak et al., arXiv 2502.04959 (Iso-C) and the authors' code.
    """

    name: ClassVar[str] = "iso-c"
    scale: float = 1.0

    def merge_matrix(self, vectors: Tensor) -> Tensor:
        """tau (T, m, n) -> mean(s) U V' (m, n)."""
        u, s, vh = svd(vectors.double().sum(dim=0))
        return s.mean() * (u @ vh)


@dataclass(frozen=True)
class IsoCts(MatrixMethod):
    """Iso-CTS: Iso-C whose weakest common directions make room for those of single tasks.

    For each matrix (m, n) and r = min(m, n), every task gets d = round((r - floor(common_fraction r)) / T) directions
    and the common subspace c = r - T d:

        U_c, s_c, V_c     the leading c singular triples of sum_t tau_t,
        U_t, s_t, V_t     the leading d singular triples of (I - U_c U_c') tau_t,
        U = whiten([U_1 ... U_T U_c]),  V = whiten([V_1 ... V_T V_c]),
        merged = theta_0 + scale * mean(s_1 ... s_T s_c) U V'.

    Parameters that are no matrices are averaged.

    scale: alpha; the paper chooses it on a validation split.
    common_fraction: how much of the rank is common, 0 to 1; the paper uses 0.8. With 1 it is Iso-C.

    Raises:
        SimoError: a scale that is not finite, or a fraction outside 0 to 1.

    Source: Marczak et al., arXiv 2502.04959 (Iso-CTS) and the authors' code.
    """

    name: ClassVar[str] = "iso-cts"
    scale: float = 1.0
    common_fraction: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction = share(self.name, "common fraction", self.common_fraction, zero=True)
        object.__setattr__(self, "common_fraction", fraction)

    def merge_matrix(self, vectors: Tensor) -> Tensor:
        """tau (T, m, n) -> mean(s) U V' (m, n)."""
        wide = vectors.double()
        rank, count = min(wide.shape[1:]), len(wide)
        own = min(round((rank - int(self.common_fraction * rank)) / count), rank // count)
        common = rank - count * own
        shared = svd(wide.sum(dim=0))
        u_common = shared.u[:, :common]
        us, ss, vhs = [], [], []
        for vector in wide if own else ():
            part = svd(vector - u_common @ (u_common.T @ vector))
            us.append(part.u[:, :own])
            ss.append(part.s[:own])
            vhs.append(part.vh[:own])
        u = whiten(torch.cat([*us, u_common], dim=1))  # (m, r)
        vh = whiten(torch.cat([*vhs, shared.vh[:common]]))  # (r, n)
        return torch.cat([*ss, shared.s[:common]]).mean() * (u @ vh)
