"""What `inspect` says of a checkpoint."""

from __future__ import annotations

from torch import nn

from simo_merge.models import MultiTaskModel, SingleTaskModel


def describe_model(model: MultiTaskModel | SingleTaskModel) -> dict[str, str]:
    """Name and value of everything worth knowing, in the order to show it."""
    encoder = model.encoder
    height, width = encoder.patch_size
    found = {
        "kind": "multi-task model" if isinstance(model, MultiTaskModel) else "single-task model (expert)",
        "encoder": f"{encoder.name}, {_parameters(encoder)} parameters, patch {height}x{width}",
        "taps": f"blocks {', '.join(str(t) for t in encoder.taps)} of {encoder.depth}",
        "encoder passes": str(model.encoder_passes),
    }
    if model.base is not None:
        found["base"] = f"{model.base.name} from {model.base.source}, SHA-256 {model.base.sha256}"
    for name, task in model.tasks.items():
        decoder = model.decoders[name] if isinstance(model, MultiTaskModel) else model.decoder
        kind = f"{task.kind}, {task.out_channels} channel(s), {type(decoder).__name__} {_parameters(decoder)}"
        if isinstance(model, MultiTaskModel) and name in model.aligners:
            aligner = model.aligners[name]
            kind += f", aligner {aligner.config['kind']} {_parameters(aligner)}"  # type: ignore[index]
        found[f"task {name}"] = kind
    if isinstance(model, SingleTaskModel):
        return found | {name: str(value) for name, value in model.provenance.items() if name != "recipe"}
    if model.merge is not None:
        found["merge"] = f"{model.merge.method} {dict(model.merge.parameters)}"
        for task_name, expert in model.merge.experts.items():
            found[f"expert {task_name}"] = f"{expert['path']}, SHA-256 {expert['sha256'][:12]}"
        found["re-alignment"] = str(dict(model.merge.alignment)) if model.merge.alignment else "none"
    return found


def _parameters(module: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"
