"""What `inspect` says of a checkpoint: plain JSON values, and lines to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from torch import nn

from simo_merge.checkpoints.brief import brief
from simo_merge.models import Aligner, Decoder, MultiTaskModel, SingleTaskModel

MULTI, SINGLE = "multi-task", "single-task"
WHOLE = "inspect --json"  # where what is summed up is said in full


def describe_model(model: MultiTaskModel | SingleTaskModel) -> dict[str, Any]:
    """Everything worth knowing of a model, as plain JSON values."""
    encoder = model.encoder
    found: dict[str, Any] = {
        "kind": MULTI if isinstance(model, MultiTaskModel) else SINGLE,
        "encoder": {
            "name": encoder.name,
            "parameters": _parameters(encoder),
            "patch_size": list(encoder.patch_size),
            "image_size": list(encoder.image_size) if encoder.image_size else None,
            "taps": list(encoder.taps),
            "depth": encoder.depth,
        },
        "encoder_passes": model.encoder_passes,
        "base": asdict(model.base) if model.base else None,
        "tasks": {name: _task(model, name) for name in model.tasks},
    }
    if isinstance(model, SingleTaskModel):
        return found | {"provenance": dict(model.provenance)}
    trained = {"provenance": dict(model.provenance)} if "recipe" in model.provenance else {}
    return found | {"merge": asdict(model.merge) if model.merge else None} | trained


def _task(model: MultiTaskModel | SingleTaskModel, name: str) -> dict[str, Any]:
    decoder = cast(Decoder, model.decoders[name]) if isinstance(model, MultiTaskModel) else model.decoder
    found: dict[str, Any] = {
        "task": model.tasks[name].model_dump(mode="json"),
        "channels": model.tasks[name].out_channels,
        "decoder": decoder.config["kind"],
        "decoder_parameters": _parameters(decoder),
    }
    if isinstance(model, MultiTaskModel) and name in model.aligners:
        aligner = cast(Aligner, model.aligners[name])
        found |= {"aligner": aligner.config["kind"], "aligner_parameters": _parameters(aligner)}
    changes = model.changes(name) if isinstance(model, MultiTaskModel) else None
    if changes is not None:
        found |= {"changed_blocks": list(changes.indices), "change_parameters": _parameters(changes)}
    return found


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def as_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each line to show, from what `describe_model` found."""
    encoder = found["encoder"]
    size = "images of any size"
    if encoder["image_size"]:
        size = f"images of {encoder['image_size'][0]}x{encoder['image_size'][1]} only"
    lines = [
        ("kind", f"{found['kind']} model" + (" (an expert)" if found["kind"] == SINGLE else "")),
        ("encoder", f"{encoder['name']}, {_count(encoder['parameters'])}, patch {_by(encoder['patch_size'])}, {size}"),
        ("taps", f"blocks {', '.join(map(str, encoder['taps']))} of {encoder['depth']}, counted from 0"),
        ("encoder passes", f"{found['encoder_passes']:.3g}"),
        ("base", _base(found["base"])),
    ]
    lines += [(f"task {name}", _task_line(task)) for name, task in found["tasks"].items()]
    if found["kind"] == SINGLE:
        shown = {k: v for k, v in found["provenance"].items() if k not in ("recipe", "path")}
        return lines + [(name.replace("_", " "), _value(value)) for name, value in shown.items()]
    merge = found["merge"]
    if merge is None:
        return [*lines, ("merge", "none recorded")]
    lines.append(("training" if "provenance" in found else "merge", merge["method"] + _options(merge["parameters"])))
    for name, expert in merge["experts"].items():
        lines.append((f"expert {name}", f"{expert['path'] or 'never saved'}, SHA-256 {expert['sha256'][:12]}"))
    return [*lines, ("re-alignment", _alignment(merge["alignment"]))]


def _base(base: Mapping[str, str] | None) -> str:
    return "not recorded" if base is None else f"{base['name']} from {base['source']}, SHA-256 {base['sha256'][:12]}"


def _task_line(task: Mapping[str, Any]) -> str:
    kind, unit = task["task"]["kind"], task["task"]["unit"]
    what = f"{kind}, {task['channels']} classes" if kind == "segmentation" else kind + (f" in {unit}" if unit else "")
    line = f"{what}; {task['decoder']} decoder, {_count(task['decoder_parameters'])}"
    if "changed_blocks" in task:
        line += f"; changes of blocks {_ranges(task['changed_blocks'])}, {_count(task['change_parameters'])}"
    if "aligner" in task:
        line += f"; aligner {task['aligner']}, {_count(task['aligner_parameters'])}"
    return line


def _ranges(blocks: Sequence[int]) -> str:
    """Blocks in short: 3-5, 8."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _alignment(alignment: Mapping[str, Any] | None) -> str:
    if not alignment:
        return "none"
    cost = ("images", "labels", "trainable_parameters", "fit_seconds", "seed")
    # They are for config.json:
    tables = ("chosen", "blocks", "epochs_held_out", "errors_held_out", "distances", "before")
    held_out = () if isinstance(alignment.get("held_out"), float) else ("held_out",)  # an option, or a table too
    hidden = ("method", "in_encoder", *cost, *tables, *held_out)
    options = {name: value for name, value in alignment.items() if name not in hidden}
    paid = [f"{_value(alignment[name])} {name.replace('_', ' ')}" for name in cost[:3] if name in alignment]
    return f"{alignment['method']}{_options(options)}: {', '.join(paid)}, fitted in {alignment['fit_seconds']:.2f} s"


def _options(options: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{name} {_value(value)}' for name, value in options.items())})" if options else ""


def _value(value: object) -> str:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return _by(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else brief(value, WHOLE)


def _by(size: list[object]) -> str:
    return "x".join(str(side) for side in size)


def _count(parameters: int) -> str:
    scaled = f"{parameters / 1e6:.2f} M" if parameters >= 1e5 else f"{parameters / 1e3:.1f} k"
    return f"{scaled} parameters"
