"""A SIGKILL at the worst moments: the same command then ends with the weights and the log of a run without one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simo_merge.distributed import is_main
from simo_merge.training import JointConfig, TrainConfig, experts, joint, train_expert, trainer, weighting_named
from simo_merge.training.log import RunLog
from simo_merge.training.state import save_file, save_state
from simo_merge.training.trainer import Trainer
from tests.named import TAPS, named_base
from tests.processes import killed, share_work
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData, state_of

pytestmark = [pytest.mark.slow, pytest.mark.processes]
TASKS = (SEGMENTATION, DEPTH, NORMALS)
NAMES = [task.name for task in TASKS]
DPT = {"intermediate_channels": (4, 6, 8), "fusion_channels": 4, "tap_norm": True}
CONFIG = JointConfig(
    "dpt", DPT, decoder_steps=2, steps=3, batch_size=2, precision="float32", weighting=weighting_named("uncertainty")
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(tensors: Any, file: Path, metadata: Any) -> None:
    save_file(tensors, file, metadata=metadata)
    os.truncate(file, file.stat().st_size // 2)
    die()


def unnamed(tensors: Any, file: Path, metadata: Any) -> None:
    save_file(tensors, file, metadata=metadata)
    die()


def at(number: int, moment: Callable[..., None], otherwise: Callable[..., None]) -> Callable[..., None]:
    """The moment when something is done the `number`th time."""
    calls = [0]

    def run(*arguments: Any, **options: Any) -> None:
        calls[0] += 1
        (moment if calls[0] == number else otherwise)(*arguments, **options)

    return run


def saved_and_dead(*arguments: Any) -> None:
    save_state(*arguments)
    die()


def run(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model = joint._fresh(TinyData(6, TASKS), NAMES, CONFIG, named_base(), TAPS)
    validation = TinyData(2, TASKS, seed=5)
    Trainer(model, TinyData(6, TASKS), CONFIG, folder, validation, save_every=0.0, weighting=CONFIG.weighting).run()
    return {"bits": state_of(model), "log": log(folder) if is_main() else []}


def log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def dying(folder: Path, moment: str, number: int) -> None:
    """A run that the main process does not survive."""
    from simo_merge.training import state

    if is_main():
        if moment == "half a state":
            state.save_file = at(number, half_written, save_file)
        elif moment == "a state without its name":
            state.save_file = at(number, unnamed, save_file)
        elif moment == "after a state":
            trainer.save_state = at(number, saved_and_dead, save_state)
        else:
            add = RunLog.add

            def torn(log: RunLog, entry: dict[str, Any]) -> None:
                with log.file.open("a") as file:
                    file.write(json.dumps(entry)[:20])
                die()

            RunLog.add = at(number, torn, add)
    run(folder)


MOMENTS = ("half a state", "a state without its name", "after a state", "half a line of the log")


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_while_it_writes_ends_as_if_it_had_not_been(tmp_path: Path, moment: str, number: int) -> None:
    killed(dying, tmp_path / "cut", moment, number)
    resumed = run(tmp_path / "cut")
    whole = run(tmp_path / "whole")
    assert resumed["bits"] == whole["bits"]
    assert resumed["log"] == whole["log"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_two_processes_of_which_one_is_killed_go_on_as_two(tmp_path: Path, moment: str) -> None:
    killed(dying, tmp_path / "cut", moment, 4, count=2)
    resumed = share_work(run, tmp_path / "cut")
    whole = share_work(run, tmp_path / "whole")
    assert len({each["bits"] for each in (*resumed, *whole)}) == 1
    assert resumed[0]["log"] == whole[0]["log"]


def dying_while_it_forgets(folder: Path) -> None:
    """Killed as it cuts the log of a run that was killed before."""
    replaced = Path.replace
    Path.replace = lambda *_: die()  # type: ignore[method-assign]
    try:
        RunLog(folder).drop_after(2)
    finally:
        Path.replace = replaced


def test_a_kill_while_the_log_is_cut_costs_none_of_it(tmp_path: Path) -> None:
    for step in range(1, 6):
        RunLog(tmp_path).add({"step": step})
    killed(dying_while_it_forgets, tmp_path)
    RunLog(tmp_path).drop_after(2)
    assert [line["step"] for line in log(tmp_path)] == [1, 2]


# -- an expert on its way into the cache ------------------------------------------------------------------------


def expert(cache: Path) -> str:
    os.environ["SIMO_MERGE_CACHE"] = str(cache)
    torch.manual_seed(0)
    config = TrainConfig("linear", {}, decoder_steps=1, steps=1, batch_size=2, precision="float32")
    return state_of(train_expert(TinyData(6, TASKS), "depth", config, named_base(), TAPS, device="cpu"))


def dying_before_the_log_is_moved(cache: Path) -> None:
    experts._clear = lambda *_: die()
    expert(cache)


def test_an_expert_killed_when_it_was_saved_is_found_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMO_MERGE_CACHE", "")
    killed(dying_before_the_log_is_moved, tmp_path / "cut")
    assert sorted(path.suffix for path in (tmp_path / "cut" / "experts").iterdir()) == ["", ".unfinished"]
    assert expert(tmp_path / "cut") == expert(tmp_path / "whole")
    (folder,) = (tmp_path / "cut" / "experts").iterdir()
    assert [line["step"] for line in log(folder)] == [1, 2]
