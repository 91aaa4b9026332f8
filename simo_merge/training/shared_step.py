"""What a weighting gets to see of a step: losses with their graph, and ways to measure them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simo_merge.data import Batch
from simo_merge.training.forward import decoders_of
from simo_merge.training.objective import Measured, Objective
from simo_merge.training.parts import Part
from simo_merge.training.weighting import SharedStep


def shared_step(
    objective: Objective,
    parts: Sequence[Part],
    other: Batch | None,
    made: Measured,
    optimizer: torch.optim.Optimizer,
    step: int,
    number: int,
    epoch_steps: int,
) -> SharedStep:
    """A step of the second stage.

    Args:
        objective: what is minimised.
        parts: the step's batch, as far as this process has it.
        other: the rows of a second batch, if the weighting wants one.
        made: the losses of `parts`, with graph.
        optimizer: of the stage.
        step: counts from the run's beginning, from 1.
        number: counts within the stage, from 0.
        epoch_steps: steps for once through the data.
    """

    def again(exact: bool = False) -> Tensor:
        with torch.no_grad():
            return objective.losses(parts, True, step, "float32" if exact else None)

    def of_other() -> Tensor:
        assert other is not None
        return objective.losses(objective.parts(other), True, step)

    encoder = objective.model.encoder
    blocks: Any = encoder.vit.blocks
    decoder_group, encoder_group, *_ = optimizer.param_groups
    return SharedStep(
        losses=made.losses,
        encoder=tuple(encoder.parameters()),
        decoders=tuple(tuple(decoder.parameters()) for decoder in decoders_of(objective.model).values()),
        last_layer=tuple(blocks[encoder.taps[-1]].parameters()),
        number=number,
        epoch_steps=epoch_steps,
        rates=(encoder_group["lr"], decoder_group["lr"]),
        generator=torch.Generator().manual_seed(objective.config.seed * 1_000_003 + step),
        again=again,
        other=None if other is None else of_other,
        extra=made.extra,
    )
