"""Task singular vectors: every task keeps its leading directions, made orthogonal to those of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simo_merge.merging.spectral.svd import MatrixMethod, svd, whiten


@dataclass(frozen=True)
class Tsvm(MatrixMethod):
    """TSV-Merge: the leading singular vectors of all tasks, whitened together.

    For each matrix (m, n), with tau_t = U_t S_t V_t' and k = min(m, n) // T (at least 1),

        U = [U_1[:, :k] ... U_T[:, :k]],  S = diag(S_1[:k] ... S_T[:k]),  V likewise,
        merged = theta_0 + scale * U_perp S V_perp',

    where U_perp = P Q' for U = P D Q' is the nearest matrix with orthonormal columns (Procrustes). Parameters that
    are no matrices are averaged.

    scale: alpha, the scaling of the merged task vector; the paper uses 1.

    Singular vectors that several tasks share leave U without full rank. U_perp is then the partial isometry on what
    there is: T equal experts of rank k or less merge to themselves, in any order.

    Raises:
        SimoError: a scale that is not finite.

    Source: Gargiulo et al., arXiv 2412.00081 (TSV-Merge) and the authors' code.
    """

    name: ClassVar[str] = "tsv-m"
    scale: float = 1.0

    def merge_matrix(self, vectors: Tensor) -> Tensor:
        """tau (T, m, n) -> U_perp S V_perp' (m, n)."""
        kept = max(1, min(vectors.shape[1:]) // len(vectors))
        parts = [svd(vector) for vector in vectors]
        u = torch.cat([part.u[:, :kept] for part in parts], dim=1)  # (m, T k)
        s = torch.cat([part.s[:kept] for part in parts])  # (T k,)
        vh = torch.cat([part.vh[:kept] for part in parts])  # (T k, n)
        return (whiten(u) * s) @ whiten(vh)
