from __future__ import annotations

import math

import numpy as np
import pytest

from simo_merge.report import AlignmentRow, FeatureCloud, Panel, PanelCell, Report
from simo_merge.results import ResultRow
from simo_merge.tasks import Depth, Normals, Segmentation
from tests.demo.conftest import experts, merged

__all__ = ["experts", "merged"]

TASKS = [Segmentation(classes=("wall", "floor", "bed")), Depth(), Normals()]
BEST = "task-arithmetic+surgery-closed-form"


def make_row(method: str, miou: float, depth: float, angle: float, delta: float, **changes: object) -> ResultRow:
    values: dict[str, object] = {
        "method": method,
        "data": "rooms",
        "split": "test",
        "protocol": "pooled",
        "tasks": ("segmentation", "depth", "normals"),
        "seed": 0,
        "per_task": {
            "segmentation": {"miou": miou, "pixel_accuracy": 0.8},
            "depth": {"abs": depth, "rel": 0.1},
            "normals": {"mean": angle, "within_11.25": 0.6},
        },
        "delta_ratio": delta,
        "delta_eq2": 1.3 * delta,
        "labels": 0,
        "images": 200,
        "encoder_passes": 1,
        "trainable_parameters": 442_368,
        "fit_seconds": 13.0,
    }
    return ResultRow(**(values | changes))  # type: ignore[arg-type]


def make_rows() -> list[ResultRow]:
    return [
        make_row("experts", 0.6, 0.2, 12.0, 0.0, labels=3000, images=0, encoder_passes=3),
        make_row("base", 0.3, 0.6, 30.0, -59.0, images=0),
        make_row("task-arithmetic", 0.4, 0.4, 20.0, -40.0, images=0, trainable_parameters=0),
        make_row("task-arithmetic+surgery", 0.5, 0.3, 15.0, -23.3),
        make_row(BEST, 0.54, 0.25, 13.3, -10.0),
        make_row("ties+another-way", 0.5, math.nan, 15.0, math.nan),
        make_row("task-arithmetic+per-block", 0.59, 0.21, 12.2, -3.0, encoder_passes=3),
        make_row("joint-equal", 0.59, 0.21, 12.5, -3.5, labels=1000, images=0),
    ]


def make_picture(seed: int, height: int = 36, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_panel(title: str) -> Panel:
    columns = ("truth", "experts", "task-arithmetic", BEST)
    cells = [
        PanelCell(task.name, column, make_picture(10 * i + j))
        for i, task in enumerate(TASKS)
        for j, column in enumerate(columns)
    ]
    return Panel(title, make_picture(99), cells)


def make_cloud(task: str, tap: str, aligned: bool = True) -> FeatureCloud:
    rng = np.random.default_rng(len(task) + len(tap))
    expert = rng.normal(size=(200, 2)).astype(np.float32) * (1.0, 0.5)
    merged = (0.4 * expert + (2.0, 0.3)).astype(np.float32)
    return FeatureCloud(task, tap, expert, merged, 0.9 * expert if aligned else None, (0.4, 0.1))


def make_errors() -> list[Panel]:
    columns = ("task-arithmetic", BEST)
    return [
        Panel(
            title,
            make_picture(99),
            [
                PanelCell(f"{t.name}, 0 to 0.5", c, make_picture(i + j))
                for i, t in enumerate(TASKS)
                for j, c in enumerate(columns)
            ],
        )
        for title in ("mean over 60 images", "room 7")
    ]


def make_report(**changes: object) -> Report:
    values: dict[str, object] = {
        "title": "Three models become one",
        "environment": {"python": "3.11", "date": "2030-01-02T03:04:05+00:00"},
        "rows": make_rows(),
        "tasks": TASKS,
        "alignment": [
            AlignmentRow(method, task.name, f"block {block}", 0.1 * block / scale, 0.2, 1 - 0.2 * block / scale)
            for method, scale in (("task-arithmetic", 1), (BEST, 4))
            for task in TASKS
            for block in (3, 6, 9, 12)
        ],
        "panels": [make_panel("Room 1"), make_panel("Room 2")],
        "photos": [make_panel("A photograph")],
        "timings": [("train", 412.0), ("merge", 0.0)],
        "notes": ["One seed."],
        "verdict": "Most of the loss came back.",
        "commands": ("make demo",),
        "forward_seconds": (0.142, 0.051),
        "clouds": [make_cloud(task.name, f"block {block}") for task in TASKS for block in (3, 6, 9, 12)],
        "errors": make_errors(),
    }
    return Report(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def report() -> Report:
    return make_report()
