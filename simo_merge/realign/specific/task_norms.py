"""LayerNorms of its own for every task, in every block, from the moments of their channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn

from simo_merge.errors import SimoError
from simo_merge.models import BlockChange
from simo_merge.realign.recalibration import match
from simo_merge.realign.specific.block_by_block import BlockByBlock
from simo_merge.realign.specific.channels import outputs_summed
from simo_merge.realign.specific.walk import Here, Propose, Walk


@dataclass(frozen=True)
class TaskNorms(BlockByBlock):
    """The scale and shift of every LayerNorm in every block, for each task; all else of the encoder is shared.

    In the order in which the encoder runs them, on the task's own stream, each LayerNorm gets the scale and shift that
    give every channel of its output the mean and the deviation of the expert's LayerNorm (`recalibration.match`):

        w' = s w,   b' = s b + m_y - s m_x,   s = dev_y / dev_x,

    m_x, dev_x of what it gives with the shared w and b. Deviations are within the patches and within each prefix
    token, pooled; a weight keeps its sign. Least squares would multiply by the correlation as well, which shrinks the
    variance, block after block. A block's LayerNorms are kept or dropped together. The norm behind the last block is
    left as it is: no tap reads it.

    from_block, held_out, prefix: see `BlockByBlock`.

    Source: task-specific normalisation after merging; channel moments as in REPAIR, arXiv 2211.08403, there for batch
    norms of convolutional networks. Ours: in forward order, for the LayerNorms of one encoder that tasks share.
    """

    name: ClassVar[str] = "task-norms"

    def proposals(self, walk: Walk, blocks: range, seed: int) -> Propose:
        """Every block's LayerNorms are fitted where the walk has come to it."""
        return self._match

    def _match(self, here: Here) -> BlockChange:
        names = norms_in_order(here)
        shared = {name: cast(nn.LayerNorm, here.block.get_submodule(name)) for name in names}
        change = BlockChange({name: norm.weight.numel() for name, norm in shared.items()}).to(here.ours.device)
        for name, norm in shared.items():
            change.norm(name).load_state_dict(norm.state_dict())
        expert = here.theirs.blocks[here.index]
        with outputs_summed(expert, names, here.prefix) as theirs:
            for part, tokens in enumerate(here.before):
                here.theirs.run_block(here.index, part, tokens.to(here.theirs.device))
        for name in names:
            with outputs_summed(here.block, [name], here.prefix) as ours:
                for part in range(len(here.plain)):
                    here.changed(change, part)
            found = (sums[name].mean_and_deviation(here.prefix_weight) for sums in (ours, theirs))
            scale, shift = match(*next(found), *next(found))
            own = change.norm(name)
            own.weight.copy_(own.weight * scale)
            own.bias.copy_(own.bias * scale + shift)
        return change


def norms_in_order(here: Here) -> list[str]:
    """Names of the block's LayerNorms that have a scale and a shift, as the block runs them.

    Raises:
        SimoError: a block without any.
    """
    ran: dict[str, None] = {}
    handles = []
    for name, module in here.block.named_modules():
        if isinstance(module, nn.LayerNorm) and module.elementwise_affine and module.bias is not None:

            def note(_: nn.Module, __: Any, ___: Any, name: str = name) -> None:
                ran[name] = None

            handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            here.ours.run_block(here.index, 0, here.ours.tokens[0][:1].to(here.ours.device))
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise SimoError(
            f"the encoder's blocks ({type(here.block).__name__}) have no LayerNorm with a scale and a shift; use "
            "surgery-v2"
        )
    return list(ran)
