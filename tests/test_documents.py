"""What the documents show of extending the toolkit works as it stands there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import simo_merge as sm
from tests.tiny import DEPTH, SEGMENTATION, TinyData, tiny_base, tiny_expert

DOCS = Path(__file__).resolve().parents[1] / "docs"


def shown(document: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of this name, from the block of Python that defines it."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / document).read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (block for block in blocks if f"class {name}(" in block)
    module = types.ModuleType("shown_in_a_document")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    exec(block, module.__dict__)  # noqa: S102
    return getattr(module, name)


def test_a_merge_method_is_added_as_the_document_says(monkeypatch: pytest.MonkeyPatch) -> None:
    median = shown("merging.md", "Median", monkeypatch)
    base = tiny_base()
    experts = [tiny_expert(SEGMENTATION, base, 1), tiny_expert(DEPTH, base, 2)]
    merged = sm.merge(experts, median(), base)
    for name, found in merged.encoder.state_dict().items():
        at_base = base.vit.state_dict()[name.removeprefix("vit.")]
        vectors = torch.stack([expert.encoder.state_dict()[name] - at_base for expert in experts])
        torch.testing.assert_close(found, at_base + vectors.median(dim=0).values, msg=name)


def test_a_re_alignment_is_added_as_the_document_says(monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = shown("realignment.md", "Offsets", monkeypatch)
    base, images = tiny_base(), TinyData(4)
    experts = [tiny_expert(SEGMENTATION, base, 1), tiny_expert(DEPTH, base, 2)]
    merged = sm.merge(experts, sm.TaskArithmetic(0.3), base)
    aligned = sm.realign(merged, experts, images, offsets())
    batch = torch.stack([images[i].image for i in range(4)])
    with torch.inference_mode():
        for expert in experts:
            aligner = aligned.aligner(expert.task.name)
            assert aligner is not None
            for ours, theirs in zip(aligner(aligned.encoder(batch)).maps, expert.encoder(batch).maps, strict=True):
                torch.testing.assert_close(ours.mean((0, 2, 3)), theirs.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    assert aligned.merge is not None
    assert (aligned.merge.alignment or {})["method"] == "offsets"
