"""The log of a run, `metrics.jsonl`: a line of JSON for each step and each validation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


class RunLog:
    """Adds entries to `metrics.jsonl` in a folder; every entry has a `step`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "metrics.jsonl"

    def add(self, entry: dict[str, Any]) -> None:
        """Write one line."""
        with self.file.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def drop_after(self, step: int) -> None:
        """Forget lines of steps that a killed run made after its last state; they are made again."""
        if self.file.is_file():
            lines = [line for line in self.file.read_text().splitlines() if _step_of(line) <= step]
            temporary = self.file.with_name(f".{self.file.name}.tmp")  # a kill while writing must not cost the log
            temporary.write_text("".join(line + "\n" for line in lines))
            temporary.replace(self.file)

    def step_seconds(self) -> dict[str, float]:
        """Mean seconds a step of each stage, loading included."""
        found: dict[str, float] = {}
        entries = [json.loads(line) for line in self.file.read_text().splitlines()]
        steps = [entry for entry in entries if "loss" in entry]
        before = 0.0
        for stage in dict.fromkeys(entry["stage"] for entry in steps):
            own = [entry for entry in steps if entry["stage"] == stage]
            found[stage] = (own[-1]["seconds"] - before) / len(own)
            before = own[-1]["seconds"]
        return found


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return math.inf  # a line cut off by the kill
