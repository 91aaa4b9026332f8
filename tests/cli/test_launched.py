"""The program under torchrun: two processes, one result, told once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from simo_merge.checkpoints import load
from tests.cli.conftest import ENCODER, Program
from tests.processes import free_port

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
EVEN = ("--decoder", "linear", "--decoder-steps", "2", "--steps", "3", "--batch-size", "4", "--precision", "float32")


Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Runs the program by two processes, with a cache of their own."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-addr",
            "127.0.0.1",
        ]
        command = [*torchrun, "--master-port", str(free_port()), "-m", "simo_merge", *map(str, arguments)]
        own = {"SIMO_MERGE_CACHE": str(tmp_path / "two"), "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
        environment = {**os.environ, **own, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


def close(one: Path, two: Path) -> None:
    ours, theirs = load(two).state_dict(), load(one).state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-2, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_the_package_is_the_program() -> None:
    told = subprocess.run([sys.executable, "-m", "simo_merge", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout.startswith("simo-merge ")


def test_two_processes_train_the_expert_that_one_trains(
    made: Path, data: str, program: Program, launch: Launch, tmp_path: Path
) -> None:
    arguments = ["train", "--task", "depth", "--data", data, *ENCODER, *EVEN, "--val-split", "val"]
    done = launch(*arguments, "-o", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("expert for depth") == 1
    assert done.stderr.count("on val: abs ") == 2  # after each stage, by one of them
    assert program(*arguments, "-o", tmp_path / "one").status == 0
    close(tmp_path / "one", tmp_path / "both")
    assert load(tmp_path / "both").provenance["processes"] == 2


def test_two_processes_train_jointly(made: Path, data: str, program: Program, launch: Launch, tmp_path: Path) -> None:
    arguments = ["train-joint", "--task", "depth", "--task", "normals", "--data", data, *ENCODER, *EVEN]
    arguments += ["--weighting", "cagrad", "--accumulate", "2", "--checkpointing"]
    done = launch(*arguments, "-o", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("joint model for depth, normals") == 1
    assert program(*arguments, "-o", tmp_path / "one").status == 0
    close(tmp_path / "one", tmp_path / "both")


def test_two_processes_realign_and_evaluate(
    made: Path, data: str, program: Program, launch: Launch, tmp_path: Path
) -> None:
    done = launch("realign", made / "merged", "--data", data, "--rank", 4, "-o", tmp_path / "aligned")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("re-aligned model") == 1
    close(made / "aligned", tmp_path / "aligned")
    for file, run in (("two.json", launch), ("one.json", program)):
        run("evaluate", made / "aligned", "--data", data, "--json", tmp_path / file)
    one, two = (json.loads((tmp_path / file).read_text())["rows"] for file in ("one.json", "two.json"))
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        for task, scores in a["per_task"].items():
            # Batches of other sizes round elsewhere in float32; the sums over images are of float64.
            assert b["per_task"][task] == pytest.approx(scores, rel=1e-6)


def test_errors_are_told_and_commands_of_one_process_refused(
    made: Path, data: str, launch: Launch, tmp_path: Path
) -> None:
    uneven = launch("train", "--task", "depth", "--data", data, *ENCODER, "--batch-size", 3, "-o", tmp_path / "no")
    assert uneven.returncode != 0
    assert "error: batch_size is 3, images of a step over all processes" in uneven.stderr
    merging = launch("merge", made / "depth", made / "normals", "-o", tmp_path / "no")
    assert "error: merge is the work of one process, but 2 were started; start it without torchrun" in merging.stderr
    assert not (tmp_path / "no").exists()
