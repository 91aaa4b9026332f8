"""Models of segmentation_models_pytorch as experts."""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn

from simo_merge.errors import SimoError
from simo_merge.models import DPTDecoder, Encoder, SingleTaskModel
from simo_merge.tasks import Task
from simo_merge.weights import build_vit
from simo_merge.weights.files import refuse_non_finite


def from_smp(model: nn.Module, task: Task) -> SingleTaskModel:
    """An `smp.DPT` over a timm ViT as an expert; weights are copied, predictions are the same.

    Images go in as [0, 1]; the encoder normalises them with its timm mean and deviation.

    Raises:
        SimoError: another smp architecture, an encoder that is no plain RGB ViT, an output activation, another
            number of output channels than the task has, or NaN in the weights.
    """
    smp = _smp()
    if not isinstance(model, smp.DPT):
        raise SimoError(f"only smp.DPT models can become experts (a ViT encoder is needed), got {type(model).__name__}")
    refuse_non_finite(model.state_dict(), "the smp model")
    source, timm_name = model.encoder, model.encoder.name
    encoder = Encoder(_copied_vit(source.model, timm_name), timm_name, source._output_indices)
    head = model.segmentation_head.head
    out_channels = head[-1].out_channels
    if out_channels != task.out_channels:
        raise SimoError(
            f"the smp model has {out_channels} output channels, task {task.name!r} needs {task.out_channels}; "
            "give the task that it was trained for"
        )
    if not isinstance(model.segmentation_head.activation.activation, nn.Identity):
        raise SimoError(
            "the smp model applies an activation to its outputs; tasks bring their own, so give a model that was "
            "trained with activation=None"
        )
    decoder = DPTDecoder(
        tap_channels=source.out_channels,
        prefix_tokens=encoder.prefix_tokens,
        out_channels=out_channels,
        intermediate_channels=[b.project_to_out_channel.out_channels for b in model.decoder.reassemble_blocks],
        fusion_channels=head[0].in_channels,
        readout=_readout(model.decoder),
        strides=source.output_strides,
    )
    decoder.decoder.load_state_dict(model.decoder.state_dict())
    decoder.head.load_state_dict(model.segmentation_head.state_dict())
    return SingleTaskModel(encoder, decoder, task, provenance={"imported": f"smp.DPT {timm_name}"}).eval()


def _copied_vit(source: Any, name: str) -> nn.Module:
    size = tuple(source.patch_embed.img_size)
    vit = build_vit(name, size)
    # smp leaves timm's classifier on its encoders; features never pass through it.
    state = {k: v for k, v in source.state_dict().items() if not k.startswith(("head.", "head_dist."))}
    what = f"the encoder of the smp model is not timm's {name} as it stands; train it without options that change it"
    try:
        vit.load_state_dict(state)
    except RuntimeError as error:
        raise SimoError(f"{what} ({' '.join(str(error).split())})") from error
    # Some options (num_heads, an activation) leave no trace in the tensors.
    image = torch.linspace(-1, 1, 3 * size[0] * size[1]).view(1, 3, *size)
    with torch.inference_mode():
        ours = cast(Any, vit).forward_features(image)
        theirs = copy.deepcopy(source).cpu().eval().forward_features(image)
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4):
        raise SimoError(f"{what} (its features differ)")
    return vit


def _readout(decoder: nn.Module) -> str:
    kinds = {"ReadoutConcatBlock": "cat", "ReadoutAddBlock": "add", "ReadoutIgnoreBlock": "ignore"}
    return kinds[type(decoder.projection_blocks[0]).__name__]  # type: ignore[index]


def load_smp(path: Path, config: dict[str, Any], task: Task | None) -> SingleTaskModel:
    """Read a directory written by smp's `save_pretrained`.

    Raises:
        SimoError: no task given, an architecture other than DPT, or damaged weights.
    """
    if config["_model_class"] != "DPT":
        raise SimoError(f"{path} holds an smp {config['_model_class']}; only smp's DPT (over a ViT) can be an expert")
    if task is None:
        raise SimoError(
            f"{path} is an smp model, which does not say what it predicts; name its task (simo-merge import)"
        )
    smp = _smp()
    options = {k: v for k, v in config.items() if k != "_model_class"}
    options["encoder_weights"] = None  # the weights come from the file; never from a hub
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the hub's client prints what it does
            model = smp.DPT.from_pretrained(str(path), strict=True, **options)
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise SimoError(f"{path}: the smp model cannot be read: {' '.join(str(error).split())}") from error
    return from_smp(model, task)


def _smp() -> Any:
    """The library, imported when one of its models is read: it takes seconds."""
    import segmentation_models_pytorch

    return segmentation_models_pytorch
