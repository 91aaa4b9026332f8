"""What happened, in three small drawings: three models, one merged encoder, features re-aligned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from simo_merge.report.svg import element

WIDTH, ROW, MARGIN = 320, 44, 8
PHOTO, ENCODER, DECODER = 4, 80, 226
BOX, BOX_HEIGHT = 90, 30
ALIGNER = 188
LONGEST_NAME = 13


@dataclass(frozen=True)
class Step:
    """One drawing with its heading and a sentence; `family` is its colour."""

    heading: str
    sentence: str
    family: str
    svg: Markup


def steps(task_names: Sequence[str]) -> list[Step]:
    """Return the three drawings for these tasks."""
    number = len(task_names)
    return [
        Step(
            "Start: one model per task",
            f"Each task has its own fine-tuned copy of the encoder: {number} passes over every image.",
            "reference",
            _drawing(task_names, "reference", "One encoder for each decoder."),
        ),
        Step(
            "Merge: one encoder",
            "The encoders' weights become one set: one pass. But no decoder gets the features it knows.",
            "merged",
            _drawing(task_names, "merged", "One merged encoder; its features no longer fit the decoders."),
        ),
        Step(
            "Re-align: features that fit again",
            "A small map for each task, fitted without labels, gives each decoder its features back.",
            "realigned",
            _drawing(task_names, "realigned", "One merged encoder and a small aligner before each decoder."),
        ),
    ]


def _drawing(names: Sequence[str], family: str, title: str) -> Markup:
    height = max(len(names), 2) * ROW + 2 * MARGIN
    middle = height / 2
    centres = [middle + (index - (len(names) - 1) / 2) * ROW for index in range(len(names))]
    parts = [element("title", title), _photo(middle)]
    if family == "reference":
        for centre in centres:
            parts += [
                _curve(PHOTO + 48, middle, ENCODER, centre),
                _box(ENCODER, centre, "encoder", "encoder"),
            ]
    else:
        parts.append(_curve(PHOTO + 48, middle, ENCODER, middle))
        parts.append(_box(ENCODER, middle, "encoder", "encoder one", height=height - 2 * MARGIN - 8))
    for centre, name in zip(centres, names, strict=True):
        start = ENCODER + BOX
        parts.append(_curve(start, centre, DECODER, centre, f"link {family}"))
        if family == "realigned":
            parts.append(element("rect", x=ALIGNER, y=centre - 10, width=20, height=20, rx=4, class_="aligner"))
        parts.append(_box(DECODER, centre, name, "decoder"))
    return element("svg", *parts, role="img", viewBox=f"0 0 {WIDTH} {height}", class_="drawing")


def _box(left: int, centre: float, text: str, kind: str, height: float = BOX_HEIGHT) -> Markup:
    squeeze = BOX - 10 if len(text) > LONGEST_NAME else None
    label = element(
        "text",
        text,
        x=left + BOX / 2,
        y=centre,
        textLength=squeeze,
        lengthAdjust="spacingAndGlyphs" if squeeze else None,
    )
    frame = element("rect", x=left, y=centre - height / 2, width=BOX, height=height, rx=5)
    return element("g", frame, label, class_=kind)


def _curve(x1: float, y1: float, x2: float, y2: float, kind: str = "link") -> Markup:
    bend = (x1 + x2) / 2
    return element("path", d=f"M{x1} {y1:g}C{bend} {y1:g} {bend} {y2:g} {x2} {y2:g}", class_=kind)


def _photo(middle: float) -> Markup:
    top = middle - 18
    return element(
        "g",
        element("rect", x=PHOTO, y=top, width=48, height=36, rx=4),
        element("circle", cx=PHOTO + 36, cy=top + 10, r=4),
        element("path", d=f"M{PHOTO + 4} {top + 32:g}l13 -17l9 11l6 -6l12 12z"),
        class_="photo",
    )
