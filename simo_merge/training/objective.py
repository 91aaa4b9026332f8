"""What a step minimises: the losses of its whole batch, however it is cut into parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simo_merge.data import Batch
from simo_merge.distributed import add_up, total_of_parts
from simo_merge.training.config import TrainConfig
from simo_merge.training.distillation import Distillation
from simo_merge.training.forward import Forward, Trained, buffers_of, forward, unchanged_buffers
from simo_merge.training.parts import Cut, Part
from simo_merge.training.shared_layers import SharedLayers


@dataclass(frozen=True)
class Measured:
    """Losses (T,) of the whole batch and, with distillation, its loss; their graphs reach this process's parts alone.

    A gradient of them is one summand of the whole gradient: `distributed.add_up` makes it that.
    """

    losses: Tensor
    extra: Tensor | None = None


class Objective:
    """Losses of a model on a step's batch.

    Args:
        model: what is trained.
        config: precision, seed, and how batches are cut.
        distillation: its loss is measured with those of the tasks, where the encoder is trained.

    Raises:
        SimoError: as `Cut`.
    """

    def __init__(self, model: Trained, config: TrainConfig, distillation: Distillation | None = None) -> None:
        self.model = model
        self.config = config
        self.distillation = distillation
        self.cut = Cut(config.batch_size, config.accumulate)
        self.device = next(model.parameters()).device
        self._layers = SharedLayers()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the block the encoder is checkpointed or compiled, as the options say, and layers see all parts."""
        encoder = self.model.encoder
        if self.config.checkpointing:
            encoder.checkpoint_blocks(True)
        if self.config.compile:
            encoder.compile()
        try:
            with nullcontext() if self.cut.whole else self._layers.installed(self.model):
                yield
        finally:
            if self.config.checkpointing:
                encoder.checkpoint_blocks(False)
            if self.config.compile:
                encoder._compiled_call_impl = None

    def parts(self, batch: Batch) -> list[Part]:
        """The parts of this process's rows of a batch."""
        return self.cut.parts(batch, self.model.tasks)

    def measure(self, parts: Sequence[Part], trains_encoder: bool, step: int) -> Measured:
        """The losses, with graph.

        Of several micro-batches the graph keeps no activations: each is run again when its gradients are wanted.
        """
        if len(parts) == 1:
            return self._whole([self._part(parts[0], trains_encoder, step)])
        return self._whole([self._checkpointed(part, trains_encoder, step) for part in parts])

    def descend(self, parts: Sequence[Part], trains_encoder: bool, step: int) -> Measured:
        """The losses without graph; the gradients of their plain sum are left in `.grad`, part by part."""
        found = []
        for part in parts:
            made = self._part(part, trains_encoder, step)
            total = made.losses.sum() if made.extra is None else made.losses.sum() + made.extra
            total.backward()  # type: ignore[no-untyped-call]
            found.append(Measured(made.losses.detach(), None if made.extra is None else made.extra.detach()))
        return self._whole(found)

    def losses(self, parts: Sequence[Part], trains_encoder: bool, step: int, precision: str | None = None) -> Tensor:
        """The losses of the tasks alone, (T,), from passes that leave no trace in batch norms."""
        again = len(parts) > 1 and torch.is_grad_enabled()
        run = self._checkpointed if again else self._part
        with unchanged_buffers(self.model):
            found = [run(part, trains_encoder, step, precision, distils=False) for part in parts]
        return self._whole(found).losses

    def _forward(self, part: Part, trains_encoder: bool, step: int, precision: str | None = None) -> Forward:
        seed = self.config.seed * 1_000_003 + step  # dropout depends on the step, not on what ran before
        batch = part.batch.to(self.device)
        with self._layers.rows(part.first, self.config.batch_size):
            return forward(self.model, batch, trains_encoder, precision or self.config.precision, seed)

    def _part(
        self, part: Part, trains_encoder: bool, step: int, precision: str | None = None, distils: bool = True
    ) -> Measured:
        made = self._forward(part, trains_encoder, step, precision)
        losses = made.losses if part.share is None else made.losses * part.share.to(made.losses)
        if self.distillation is None or not trains_encoder or not distils:
            return Measured(losses)
        extra = self.distillation.loss(part.batch.images.to(self.device), made.taps)
        return Measured(losses, extra if part.share is None else extra * part.images)

    def _checkpointed(
        self, part: Part, trains_encoder: bool, step: int, precision: str | None = None, distils: bool = True
    ) -> Measured:
        """The same, with a graph that runs the part again instead of keeping its activations."""
        before = [buffer.clone() for *_, buffer in buffers_of(self.model)]

        def again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _EachTime(lambda: unchanged_buffers(self.model, before))

        def run() -> tuple[Tensor, Tensor | None]:
            made = self._part(part, trains_encoder, step, precision, distils)
            return made.losses, made.extra

        return Measured(*cast(tuple[Tensor, Tensor | None], checkpoint(run, use_reentrant=False, context_fn=again)))

    def _whole(self, found: Sequence[Measured]) -> Measured:
        extras = [each.extra for each in found if each.extra is not None]
        return Measured(
            total_of_parts(_sum([each.losses for each in found])), total_of_parts(_sum(extras)) if extras else None
        )


class _EachTime(AbstractContextManager[None]):
    """A context made anew each time it is entered: a part is run again for every task's gradient."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make
        self._open: AbstractContextManager[None] = nullcontext()

    def __enter__(self) -> None:
        self._open = self._make()
        self._open.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self._open.__exit__(*error)


def add_up_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Make of every process's part of the gradients the whole; parameters without one have none anywhere."""
    parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    add_up([p.grad for p in parameters if p.grad is not None])


def _sum(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).sum(dim=0)
