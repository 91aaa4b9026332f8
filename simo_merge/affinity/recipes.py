"""A grouping as files: a recipe for each encoder, and the commands that build and re-align it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import yaml

from simo_merge.affinity.grouping import Grouping
from simo_merge.errors import SimoError
from simo_merge.results import replace_text

README = "README.md"
METHOD = "weight-average"


def write_grouping(
    folder: str | Path, grouping: Grouping, experts: Mapping[str, str | Path], calibration: str = "--images photos/"
) -> None:
    """Write `encoder-N.yaml` for each encoder that tasks share, and `README.md` with all commands, into a folder.

    A recipe merges the experts' encoders as `simo-merge merge-files` takes it: their weight average, which needs no
    base. The commands merge whole checkpoints and re-align them.

    Args:
        folder: where the files go.
        grouping: what to build.
        experts: checkpoint of every task; recipes hold absolute paths, so that they work from anywhere.
        calibration: options of `realign` that say which images to fit to.

    Raises:
        SimoError: a task without its expert.
    """
    missing = [task for group in grouping.groups for task in group if task not in experts]
    if missing:
        raise SimoError(f"no expert is given for {', '.join(missing)}; recipes name the checkpoint of every task")
    places = {task: Path(path).absolute() for task, path in experts.items()}
    folder = Path(folder)
    for index, group in enumerate(grouping.groups, start=1):
        if len(group) > 1:
            replace_text(folder / f"encoder-{index}.yaml", _recipe([places[task] for task in group], group))
    replace_text(folder / README, _readme(grouping, places, calibration))


def _recipe(places: list[Path], group: tuple[str, ...]) -> str:
    content = {
        "merge_method": "linear",
        "models": [{"model": str(place), "parameters": {"weight": 1.0}} for place in places],
    }
    return f"# {', '.join(group)}: the mean of their encoders\n" + yaml.safe_dump(content, sort_keys=False)


def _readme(grouping: Grouping, places: Mapping[str, Path], calibration: str) -> str:
    lines = [f"# {len(grouping.groups)} encoders for {len(grouping.per_task)} tasks", ""]
    lines += [
        f"Chosen by `{grouping.measure}`, {grouping.method}. Expected gains are in the measure's unit; 0 is what a"
    ]
    lines += ["task has with an encoder of its own.", "", "| encoder | task | weight | expected gain |"]
    lines += ["| --- | --- | --- | --- |"]
    for index, group in enumerate(grouping.groups, start=1):
        for task in group:
            weight, gain = grouping.weights[task], grouping.per_task[task]
            lines.append(f"| {index} | {task} | {weight:g} | {gain:.4g} |")
    if grouping.runner_up is not None:
        other = " | ".join(" + ".join(group) for group in grouping.runner_up)
        lines += ["", f"Next best, by {grouping.margin:.3g} less: {other}."]
    for index, group in enumerate(grouping.groups, start=1):
        lines += ["", f"## Encoder {index}: {', '.join(group)}", ""]
        if len(group) == 1:
            lines += [f"Nothing is shared. The expert serves as it is: `{places[group[0]]}`."]
            continue
        given = " ".join(shlex.quote(str(places[task])) for task in group)
        lines += ["```", f"simo-merge merge {given} --method {METHOD} -o merged-{index}"]
        lines += [f"simo-merge realign merged-{index} {calibration} -o aligned-{index}", "```", ""]
        lines += ["The encoder alone, as a file of weights:", "", "```"]
        lines += [f"simo-merge merge-files encoder-{index}.yaml -o encoder-{index}.safetensors", "```"]
    return "\n".join(lines) + "\n"
