"""Lets torchvision be imported where its compiled operators do not load.

The torchvision wheel on the common registry is a CUDA build. Beside a CPU build of torch its shared library
finds no CUDA libraries, its operators stay undefined, and `import torchvision` ends in `operator
torchvision::nms does not exist`; timm, segmentation_models_pytorch and torchmetrics import torchvision and
end with it. Nothing here uses those operators: it is enough that the two names which torchvision looks up at
import time exist.

The package imports this module before anything else, because the cure must come before the first import of
torchvision. Where the operators load, it does nothing.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_SUFFIXES = {".so", ".pyd", ".dylib", ".dll"}


def operators_load() -> bool:
    """True if torchvision's compiled operators are there, or if torchvision is not installed at all."""
    if hasattr(torch.ops.torchvision, "nms"):
        return True
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    folder = Path(spec.origin).parent
    for path in sorted(p for p in folder.glob("_C*") if p.suffix in _SUFFIXES):
        try:
            torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
        except (ImportError, OSError):
            continue
        return True
    return False


def define_missing_operators() -> torch.library.Library | None:
    """Declares the schemas that torchvision's Python code refers to; None where the real operators exist."""
    if operators_load():
        return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    return library


# The definitions live as long as this object does.
_LIBRARY = define_missing_operators()
