"""A shared step with gradients that a test can write down: L_t(x) = <g_t, x> + c_t, over two shared parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from simo_merge.training.weighting import SharedStep


class Toy:
    """Shared parameters x, of sizes 2 and D - 2, one number a task of its own, and linear losses."""

    def __init__(self, gradients: Sequence[Sequence[float]], losses: Sequence[float], own: float = 1.0) -> None:
        self.gradients = torch.tensor(gradients, dtype=torch.float32)
        self.offsets = torch.tensor(losses, dtype=torch.float32)
        self.shared = (nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(self.gradients.shape[1] - 2)))
        self.unused = nn.Parameter(torch.ones(3))
        self.own = [nn.Parameter(torch.zeros(1)) for _ in losses]
        self.slope = own

    @property
    def encoder(self) -> tuple[nn.Parameter, ...]:
        return (self.shared[0], self.unused, self.shared[1])

    def losses(self) -> Tensor:
        place = torch.cat(self.shared)
        own = torch.cat(list(self.own))
        return self.gradients @ place + self.offsets + self.slope * own

    def step(
        self,
        number: int = 0,
        epoch_steps: int = 10,
        seed: int = 0,
        rates: tuple[float, float] = (0.1, 0.2),
        other: Callable[[], Tensor] | None = None,
        extra: Tensor | None = None,
    ) -> SharedStep:
        def again(exact: bool = False) -> Tensor:
            with torch.no_grad():
                return self.losses()

        for parameter in (*self.encoder, *self.own):
            parameter.grad = None
        return SharedStep(
            losses=self.losses(),
            encoder=self.encoder,
            decoders=tuple((parameter,) for parameter in self.own),
            last_layer=(self.shared[1],),
            number=number,
            epoch_steps=epoch_steps,
            rates=rates,
            generator=torch.Generator().manual_seed(seed),
            again=again,
            other=other,
            extra=extra,
        )

    @property
    def direction(self) -> Tensor:
        """The gradient that was left for x."""
        assert self.unused.grad is None
        return torch.cat([parameter.grad for parameter in self.shared])  # type: ignore[misc]
