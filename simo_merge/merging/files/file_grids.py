"""The grids of position embeddings of stored weights: recorded by a checkpoint, given, or square."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging.positions import OFFER, POSITIONS, ResampledPositions, grid_of
from simo_merge.merging.stored import stored_in

State = Mapping[str, Tensor]
Rows = tuple[int, int]


def on_base_grid(
    states: Sequence[State],
    paths: Sequence[str | Path | None],
    labels: Sequence[str],
    resample: bool,
    given: Sequence[Rows],
) -> list[State]:
    """Base and experts, with the experts' position embeddings on the base's grid.

    Args:
        states: the base's tensors, then the experts'.
        paths: where each was read from, if from files.
        labels: what to call each in messages.
        resample: whether other grids are resampled; else those that checkpoints record are refused. Other shapes are
            left as they are: `check_states` tells of them, with all else that is wrong.
        given: (rows, columns) of patches that a person gave.

    Raises:
        SimoError: grids given for nothing, recorded grids that differ, or a grid that cannot be told.
    """
    if given and not resample:
        raise SimoError("grids of position embeddings are for resampling them; add --resample-pos-embed")
    base = states[0]
    if POSITIONS not in base:
        return list(states)
    recorded = [_recorded(path, state) for path, state in zip(paths, states, strict=True)]
    fitted = [base]
    for state, label, sides in zip(states[1:], labels[1:], recorded[1:], strict=True):
        if POSITIONS not in state or not _differ(base, state, recorded[0], sides):
            fitted.append(state)
        elif resample:
            new = grid_of(base, labels[0], recorded[0], given)
            fitted.append(ResampledPositions(state, grid_of(state, label, sides, given), new, label))
        elif recorded[0] and sides and _same_shape(base, state):
            raise SimoError(
                f"{label} has position embeddings of {sides[0]}x{sides[1]} patches, {labels[0]} of "
                f"{recorded[0][0]}x{recorded[0][1]}; {OFFER}"
            )
        else:
            fitted.append(state)
    return fitted


def _differ(base: State, state: State, ours: Rows | None, theirs: Rows | None) -> bool:
    """Whether grids differ: in shape, or, as 9x12 and 12x9 do, in what is recorded."""
    return not _same_shape(base, state) or (ours is not None and theirs is not None and ours != theirs)


def _same_shape(base: State, state: State) -> bool:
    return stored_in(base, POSITIONS).shape == stored_in(state, POSITIONS).shape


def _recorded(path: str | Path | None, state: State) -> Rows | None:
    """(rows, columns) of patches, where the weights lie in a checkpoint of ours, which says image size and encoder."""
    config = None if path is None else Path(path) / "config.json"
    if config is None or not config.is_file() or "patch_embed.proj.weight" not in state:
        return None
    content = json.loads(config.read_text(encoding="utf-8"))
    size = content["encoder"].get("image_size") if content.get("format") == "simo_merge" else None
    if not size:
        return None
    patch = stored_in(state, "patch_embed.proj.weight").shape[-2:]
    return int(size[0]) // patch[0], int(size[1]) // patch[1]
