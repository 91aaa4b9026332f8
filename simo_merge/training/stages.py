"""The two stages of training, and what each optimises at which rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import OneCycleLR

from simo_merge.training.config import TrainConfig
from simo_merge.training.distillation import Distillation
from simo_merge.training.forward import Trained, decoders_of


@dataclass(frozen=True)
class Stage:
    """One stage: its name, its steps, and whether the encoder is trained."""

    name: str
    steps: int
    trains_encoder: bool


def stages_of(config: TrainConfig) -> list[Stage]:
    """First the decoders on the frozen encoder, then all of it."""
    return [
        Stage("decoder", config.decoder_steps, trains_encoder=False),
        Stage("encoder and decoder", config.steps, trains_encoder=True),
    ]


def stage_optimizer(
    stage: Stage, model: Trained, config: TrainConfig, distillation: Distillation | None
) -> tuple[torch.optim.Optimizer, OneCycleLR]:
    """AdamW and the one-cycle schedule of a stage; groups: decoders, encoder, distillation's matrices."""
    decoders = [p for decoder in decoders_of(model).values() for p in decoder.parameters()]
    groups: list[dict[str, Any]] = [{"params": decoders, "lr": config.decoder_lr}]
    if stage.trains_encoder:
        groups.append({"params": list(model.encoder.parameters()), "lr": config.encoder_lr})
        if distillation is not None:
            groups.append({"params": list(distillation.adapters.parameters()), "lr": distillation.adapter_lr})
    total = stage.steps + 1  # the last call to step() sets a rate that is never used
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    scheduler = OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in groups],
        total_steps=total,
        pct_start=max(config.warmup, 2 / total),  # one step at least: OneCycleLR divides by zero at none
        cycle_momentum=False,
    )
    return optimizer, scheduler
