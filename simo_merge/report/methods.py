"""Method names for people: what `task-arithmetic+surgery` is called in the report, and what it does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from simo_merge.results import ResultRow

Family = Literal["reference", "merged", "realigned", "labelled"]

EXPERTS = "experts"
REFERENCES = frozenset({EXPERTS, "base"})

_WHOLE = {
    "experts": (
        "Single-task experts",
        "One fine-tuned encoder for each task. What everything else is measured against.",
    ),
    "base": ("Pretrained base", "The encoder before any fine-tuning, read by the experts' decoders."),
    "joint-equal": (
        "Joint training",
        "One encoder trained with the labels of all tasks at once, equal weights.",
    ),
}

_MERGES = {
    "weight-average": ("Weight average", "The mean of the experts' weights."),
    "task-arithmetic": ("Task arithmetic", "Base weights plus the scaled sum of what fine-tuning changed."),
    "ties": ("TIES", "The largest of what fine-tuning changed, where the tasks agree on the sign."),
    "tsv-m": ("TSV-M", "The leading singular directions of each task's change, made orthogonal to the others'."),
}

_REALIGNMENTS = {
    "surgery-closed-form": (
        "closed-form surgery",
        "A low-rank correction of the features for each task, solved in one pass over unlabelled images.",
    ),
    "surgery-stretched": (
        "closed-form surgery, stretched",
        "Closed-form surgery; then the features get back the contrast that a least-squares fit takes away.",
    ),
    "surgery": (
        "surgery",
        "A low-rank correction of the features for each task, fitted by gradients on unlabelled images.",
    ),
    "surgery-from-closed-form": (
        "surgery from closed form",
        "Closed-form surgery first, then gradients on the same unlabelled images.",
    ),
    "auto": (
        "chosen aligners",
        "For each task and depth the correction that explains most on images held out, within a budget of parameters.",
    ),
    "auto-stretched": (
        "chosen aligners, stretched",
        "As chosen aligners; then the features get back the contrast that a least-squares fit takes away.",
    ),
    "magnitude": ("magnitudes", "The features of each depth get back the length that the task's decoder expects."),
    "orthogonal": ("turned features", "The features of each depth are turned towards those of the expert."),
    "full-affine": ("full affine map", "A linear map of the features for each task, solved in one pass."),
    "token-linear": (
        "closed-form surgery by token",
        "A low-rank correction for each task and kind of token, solved in one pass over unlabelled images.",
    ),
    "spatial": (
        "spatial surgery",
        "A low-rank correction that also reads the surroundings of a patch, solved in closed form.",
    ),
    "surgery-v2": (
        "surgery in every block",
        "A low-rank correction behind every block for each task, solved in order; tasks need passes of their own.",
    ),
    "surgery-v2-gradient": (
        "surgery in every block by gradients",
        "A low-rank correction behind every block for each task, fitted by gradients; tasks need passes of their own.",
    ),
    "task-norms": (
        "norms for each task",
        "Every layer norm of the encoder gets the expert's statistics for each task; tasks need passes of their own.",
    ),
    "encoder-calibration": (
        "calibrated encoder",
        "The encoder's layers are solved block after block towards the mean of the experts' features, without labels.",
    ),
    "encoder-adapters": (
        "shared adapters in the encoder",
        "Low-rank changes of the encoder's layers for all tasks, fitted by gradients to the experts' features.",
    ),
    "encoder-norms": (
        "encoder norms",
        "Scale and shift of the encoder's norms for all tasks, fitted by gradients to the experts' features.",
    ),
    "encoder-distilled": (
        "distilled encoder",
        "The merged encoder is trained on, without labels, until the experts' features can be read from its own.",
    ),
    "norm-recalibration": (
        "norm recalibration",
        "Each feature channel gets back the mean and spread that the task's decoder expects.",
    ),
    "batch-norm": ("batch-norm statistics", "The decoders' batch-norm statistics, measured again."),
    "surgery-gradient": (
        "tuned surgery",
        "A low-rank correction, solved in closed form and tuned on its objective while held-out images speak for it.",
    ),
    "head": ("decoders re-trained", "The decoders are trained again on the merged features, with labels."),
    "head-distilled": (
        "decoders distilled",
        "The decoders are trained again on the merged features to predict what the experts do, without labels.",
    ),
}

FAMILIES: dict[Family, str] = {
    "reference": "reference",
    "merged": "merged, features not re-aligned",
    "realigned": "re-aligned without labels",
    "labelled": "uses labels",
}


@dataclass(frozen=True)
class MethodText:
    """A method for readers: name, one plain sentence (or nothing), and a short name beside its merge."""

    name: str
    explanation: str
    short: str


def describe(method: str) -> MethodText:
    """Return the readable name and explanation of a method; an unknown part keeps its own name.

    A number in brackets tells models of one method apart, and is kept.
    """
    numbered = re.fullmatch(r"(.+) (\(\d+\))", method)
    if numbered:
        found = describe(numbered[1])
        return MethodText(f"{found.name} {numbered[2]}", found.explanation, f"{found.short} {numbered[2]}")
    if method in _WHOLE:
        name, explanation = _WHOLE[method]
        return MethodText(name, explanation, name)
    merge, _, realignment = method.partition("+")
    name, explanation = _MERGES.get(merge, (_readable(merge), ""))
    if not realignment:
        return MethodText(name, explanation, name)
    steps = [_REALIGNMENTS.get(step, (_readable(step, capital=False), "")) for step in realignment.split("+")]
    added = " + ".join(step for step, _ in steps)
    return MethodText(f"{name} + {added}", " ".join(told for _, told in steps if told), f"+ {added}")


def family(row: ResultRow) -> Family:
    """Return which kind of method a row is of; it decides the colour."""
    if row.method in REFERENCES:
        return "reference"
    if row.labels > 0:
        return "labelled"
    return "realigned" if "+" in row.method else "merged"


def _readable(name: str, capital: bool = True) -> str:
    words = name.replace("_", " ").replace("-", " ").strip()
    return words[:1].upper() + words[1:] if capital else words
