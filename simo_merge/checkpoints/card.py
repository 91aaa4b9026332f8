"""The model card written beside every checkpoint."""

from __future__ import annotations

from simo_merge.checkpoints.brief import brief
from simo_merge.checkpoints.config import CheckpointConfig
from simo_merge.models.branches import branching_passes

_TEMPLATE = """---
library_name: simo_merge
tags:
{tags}
---

# {title}

{summary}

| | |
| --- | --- |
| encoder | `{encoder}`, taps at blocks {taps} (counted from 0) |
| base weights | {base} |
| tasks | {tasks} |
| encoder passes for all tasks | {passes} |
{rows}
```python
import simo_merge as sm

model = sm.load("path/to/this/directory")
prediction = model(images)  # images: float (B, 3, H, W) in [0, 1]
```
"""


def model_card(config: CheckpointConfig) -> str:
    """The card (Markdown with the Hub's front matter) of a checkpoint."""
    names = [str(task["name"]) for task in config.tasks]
    multi = config.kind == "multi-task"
    trained = multi and "recipe" in config.provenance
    firsts = _first_changes(config)
    rows = ""
    if config.merge is not None:
        parameters = ", ".join(f"{k} = {brief(v, 'config.json')}" for k, v in config.merge.parameters.items()) or "none"
        rows += f"| {'trained' if trained else 'merged'} by | {config.merge.method} ({parameters}) |\n"
        if config.merge.alignment:
            alignment = ", ".join(f"{k} = {brief(v, 'config.json')}" for k, v in config.merge.alignment.items())
            rows += f"| re-aligned by | {alignment} |\n"
    if config.task_encoders:
        summary = "An encoder and a decoder for each task, from one merge: every task takes an encoder pass of its own."
    elif config.block_changes:
        summary = (
            "One merged encoder and a decoder for each task. Tasks run its blocks for themselves from the first that "
            f"they change, and what comes before once for all: {_changed_from(config)} (blocks count from 0)."
        )
    elif trained:
        summary = "One encoder trained for all tasks at once, and a decoder for each: every task from one encoder pass."
    elif multi:
        summary = "One merged encoder and a decoder for each task: every task from one encoder pass."
    elif config.base is not None:
        summary = "A single-task model, fine-tuned from the base weights below; it merges with others of that base."
    else:
        summary = "A single-task model; the base weights that it was fine-tuned from are not recorded."
    base = f"`{config.base.name}` from {config.base.source}, SHA-256 {config.base.sha256}" if config.base else "unknown"
    return _TEMPLATE.format(
        tags="\n".join(f"- {tag}" for tag in ("simo_merge", config.kind, *names)),
        title=("Multi-task model: " if multi else "Single-task model: ") + ", ".join(names),
        summary=summary,
        encoder=config.encoder.name,
        taps=", ".join(str(t) for t in config.encoder.taps),
        base=base,
        tasks=", ".join(names),
        passes=f"{len(names) if config.task_encoders else branching_passes(firsts, config.encoder.taps[-1] + 1):.3g}",
        rows=rows,
    )


def _changed_from(config: CheckpointConfig) -> str:
    """The tasks that change blocks, each with the first of them; they are counted as taps are, from 0."""
    firsts = {name: min(map(int, changes["blocks"])) for name, changes in config.block_changes.items()}
    return ", ".join(f"{name} from block {first} on" for name, first in firsts.items())


def _first_changes(config: CheckpointConfig) -> list[int]:
    """For each task the first block that it runs for itself; the number of blocks where there is none."""
    blocks = config.encoder.taps[-1] + 1
    changes = [config.block_changes.get(str(task["name"])) for task in config.tasks]
    return [min(map(int, change["blocks"])) if change else blocks for change in changes]
