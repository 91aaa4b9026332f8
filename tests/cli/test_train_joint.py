"""`train-joint`: one model for several tasks, from labels of all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from simo_merge.checkpoints import load
from simo_merge.training import WEIGHTINGS
from tests.cli.conftest import ENCODER, SHORT, Program, Refused

TASKS = ("--task", "depth", "--task", "normals")


def test_a_joint_model_is_trained_evaluated_and_says_what_it_is(
    made: Path, data: str, program: Program, tmp_path: Path
) -> None:
    output = tmp_path / "joint"
    weighing = ("--weighting", "dwa", "--set", "temperature=3", "--val-split", "val")
    outcome = program("train-joint", *TASKS, "--data", data, *ENCODER, *SHORT, *weighing, "--seed", 1, "-o", output)
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith(f"joint model for depth, normals: {output} (trained in ")
    assert outcome.out.rstrip().endswith("MiB at most)")
    assert outcome.err.count("on val: abs ") == 2  # depth's, after each stage
    model = load(output)
    assert list(model.tasks) == ["depth", "normals"]
    recipe = model.provenance["recipe"]
    assert recipe["weighting"] == {"name": "dwa", "temperature": 3}
    assert recipe["training"]["seed"] == 1
    told = program("inspect", output).out
    assert "joint-dwa (temperature 3)" in told
    experts = [part for task in ("depth", "normals") for part in ("--experts", made / task)]
    scored = program("evaluate", output, "--data", data, *experts)
    assert (scored.status, "joint-dwa" in scored.out) == (0, True), scored.err


def test_a_joint_model_is_distilled_from_experts(made: Path, data: str, program: Program, tmp_path: Path) -> None:
    teachers = ("--distill", made / "depth", "--distill", made / "normals", "--distill-weight", 0.5)
    arguments = ("train-joint", *TASKS, "--data", data, *ENCODER, *SHORT, *teachers)
    outcome = program(*arguments, "-o", tmp_path / "joint")
    assert outcome.status == 0, outcome.err
    merge = load(tmp_path / "joint").merge
    assert (merge.method, merge.parameters["distill"]) == ("joint-equal-distilled", 0.5)
    again = program(*arguments, "-o", tmp_path / "again")
    assert "depth + normals: taken from the cache" in again.err


def test_the_weightings_are_listed_with_their_options(program: Program) -> None:
    outcome = program("train-joint", "--list-weightings")
    assert outcome.status == 0
    assert [line.partition(":")[0] for line in outcome.out.splitlines() if line[0] != " "] == list(WEIGHTINGS)
    assert "alpha=1.5, lr=0.025, layer=last; weighs losses" in outcome.out
    assert "c=0.4; weighs gradients, one for each task" in outcome.out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--weighting", "banana"), "unknown weighting 'banana'; known: equal, uncertainty"),
        (("--weighting", "cagrad", "--set", "c=2"), "the c of cagrad must be below 1"),
        (("--set", "temperature=3"), "equal has no option temperature; it has none"),
        (("--task", "depth"), "name one task twice"),
        (("--task", "smell"), "no task smell"),
        (("--distill", "DEPTH"), "needs one expert for each of depth, normals; given: depth"),
        (("--distill", "nowhere"), "nowhere does not exist"),
        (("--distill", "DEPTH", "--distill-weight", "-1"), "distill must be 0 or more, got -1"),
    ],
)
def test_wrong_arguments_are_refused(
    made: Path, data: str, refused: Refused, change: tuple[str, ...], said: str
) -> None:
    given = [made / "depth" if part == "DEPTH" else part for part in change]
    assert said in refused("train-joint", *TASKS, "--data", data, *ENCODER, *SHORT, *given, "-o", "OUT")


def test_an_output_that_would_delete_an_expert_is_refused(made: Path, data: str, program: Program) -> None:
    outcome = program(
        "-q", "train-joint", *TASKS, "--data", data, "--distill", made / "depth", "-o", made / "depth", "--overwrite"
    )
    assert outcome.status == 2
    assert "would delete" in outcome.err
