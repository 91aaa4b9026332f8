"""Result rows: what an evaluation found, how it was measured, and the JSON file that keeps both.

A results file is one object, `{"environment": {name: text}, "rows": [row, ...]}`. A number that could not be
measured is NaN in memory and `null` on disk: JSON has no NaN.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from simo_merge.errors import SimoError

Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]

PACKAGES = {
    "torch": "torch",
    "timm": "timm",
    "smp": "segmentation-models-pytorch",
    "numpy": "numpy",
    "simo_merge": "simo-merge",
}


_COUNTS = ("labels", "images", "encoder_passes", "trainable_parameters", "evaluated", "merge_peak_bytes", "steps")


@dataclass(frozen=True)
class ResultRow:
    """One evaluated model: scores per task, performance against the experts, and what it cost.

    Args:
        method: merge method, then `+` and the re-alignment if there is one, as `task-arithmetic+surgery`.
        data: data set, as its `--data` specification.
        split: split that was evaluated.
        protocol: metric protocol, as `pooled`; with the batch size where the scores depend on it, as `mtan@8`.
        tasks: task names in order; `per_task` has exactly these.
        seed: seed of fitting.
        per_task: `{task: {metric: value}}`, NaN where nothing could be measured.
        delta_ratio: mean over tasks of (ratio to the expert - 1), percent; positive is better.
        delta_eq2: mean over tasks of the signed relative difference (Maninis et al.), percent; as above.
        labels: labelled images that this row's method was fitted with; 0 for a label-free one.
        images: unlabelled calibration images used.
        encoder_passes: encoder passes that one image costs; no whole number where tasks run some of the blocks alone.
        trainable_parameters: parameters that were fitted.
        fit_seconds: seconds that fitting took.
        evaluated: images that the scores are over; 0 in files older than this field.
        image_size: (H, W) of the first of them, to which labels and predictions were compared.
        options: options of the merge method.
        merge_seconds: seconds that merging took, what a method learns from images included.
        merge_peak_bytes: memory that merging took at its peak, beyond what was there before.
        steps: optimiser steps of the fit; of each of them where tasks or taps are fitted apart; 0 of a fit that counts
            epochs instead.
        capture_seconds: seconds that capturing the features took that the fit reads; fits of the same features share
            them, so they are not in `fit_seconds`.
        recipe: hash of all that decided the row, by which a benchmark finds it again; empty elsewhere.

    Raises:
        SimoError: when `per_task` and `tasks` disagree, or a count is negative.
    """

    method: str
    data: str
    split: str
    protocol: str
    tasks: tuple[str, ...]
    seed: int
    per_task: dict[str, dict[str, Measured]]
    delta_ratio: Measured
    delta_eq2: Measured
    labels: int
    images: int
    encoder_passes: int | float
    trainable_parameters: int
    fit_seconds: Measured
    evaluated: int = 0
    image_size: tuple[int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    merge_seconds: Measured = math.nan
    merge_peak_bytes: int = 0
    steps: int = 0
    capture_seconds: Measured = math.nan
    recipe: str = ""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if set(self.per_task) != set(self.tasks):
            raise SimoError(
                f"Result row {self.method!r}: per_task has {sorted(self.per_task)}, tasks has "
                f"{sorted(self.tasks)}. Both must name the same tasks."
            )
        for name in _COUNTS:
            count = getattr(self, name)
            if count < 0:
                raise SimoError(f"Result row {self.method!r}: {name} is {count}, expected 0 or more.")

    def to_json(self) -> dict[str, object]:
        """Return the row as plain JSON values; a number that is not finite becomes `None`."""
        plain = _without_nan(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        return plain

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> ResultRow:
        """Return the row that `to_json` wrote.

        Raises:
            SimoError: when a field is missing, unknown or of the wrong type.
        """
        try:
            return _ROW.validate_json(json.dumps(dict(record)), strict=True)
        except ValidationError as error:
            raise SimoError(f"Result row is not valid: {_first_problem(error)}.") from None


_ROW: TypeAdapter[ResultRow] = TypeAdapter(ResultRow)


class _ResultsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    environment: dict[str, str]
    rows: list[ResultRow]


def write_results(path: str | Path, environment: Mapping[str, str], rows: Sequence[ResultRow]) -> None:
    """Write a results file, atomically: readers see the old file or the new one, never a part."""
    content = {"environment": dict(environment), "rows": [row.to_json() for row in rows]}
    replace_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(path: str | Path) -> tuple[dict[str, str], list[ResultRow]]:
    """Read a results file: `(environment, rows)`.

    Raises:
        SimoError: when the file is missing, is no JSON, or a field is missing, unknown or of the wrong type.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SimoError(f"Results file {path} cannot be read: {error}. Expected JSON of write_results.") from None
    try:
        content = _ResultsFile.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise SimoError(f"Results file {path} is not valid: {_first_problem(error)}.") from None
    except SimoError as error:
        raise SimoError(f"Results file {path} is not valid. {error}") from None
    return content.environment, content.rows


def environment(device: str | torch.device = "cpu") -> dict[str, str]:
    """Return what a result depends on beside code and data: versions, platform, device, threads, date."""
    versions = {name: _version(package) for name, package in PACKAGES.items()}
    device = torch.device(device)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "cpu": _processor(),
        "device": device_name,
        "threads": str(torch.get_num_threads()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def replace_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 to a temporary name beside `path`, then rename it; make missing folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _without_nan(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "file"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {problem['msg']}{more}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed as a package"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"
