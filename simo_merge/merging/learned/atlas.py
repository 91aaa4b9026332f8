"""aTLAS: anisotropic scaling, a coefficient for every task and every parameter tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from simo_merge.errors import SimoError
from simo_merge.merging.learned.fitting import LearnedCoefficients
from simo_merge.merging.options import finite


@dataclass(frozen=True, kw_only=True)
class Atlas(LearnedCoefficients):
    """aTLAS: theta_0 + sum_t Lambda_t tau_t, Lambda_t block-diagonal with one coefficient a parameter tensor, learned.

    Weights and biases are tensors of their own, LayerNorm's included. The paper learns from labels
    (`objective="supervised"`); agreement with the experts needs none and is the default, as for AdaMerging.

    initial: 0 as in the published code, which starts from the base.
    weight_decay: decoupled, towards the base; 0.1 as in the published code.

    Raises:
        SimoError: as `LearnedCoefficients`, or a weight decay below 0.

    Source: Zhang et al., arXiv 2407.02880, section 3.
    """

    name: ClassVar[str] = "atlas"
    initial: float = 0.0
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        decay = finite(self.name, "weight_decay", self.weight_decay)
        if decay < 0:
            raise SimoError(f"the weight_decay of atlas must be 0 or more, got {decay}")
        object.__setattr__(self, "weight_decay", decay)

    @property
    def groups(self) -> str:
        """Every tensor by itself."""
        return "tensor"

    @property
    def decay(self) -> float:
        """The weight decay."""
        return self.weight_decay
