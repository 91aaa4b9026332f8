"""The program as a person calls it, and small experts and a merged model that it made."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from simo_merge.cli import main
from tests.small_set import write_picture, write_set

TASKS = ("segmentation", "depth", "normals")
ENCODER = ("--encoder", "test_vit", "--weights", "random")
SHORT = ("--decoder", "linear", "--decoder-steps", "2", "--steps", "2", "--batch-size", "2", "--encoder-lr", "1e-3")


@dataclass(frozen=True)
class Outcome:
    """How a call ended, and what it wrote to each stream."""

    status: int
    out: str
    err: str


Program = Callable[..., Outcome]
Refused = Callable[..., str]


def call(*arguments: object) -> int:
    """Run the program; the root logger, which it sets up, is left as it was."""
    root = logging.getLogger()
    handlers, level, argv = root.handlers[:], root.level, sys.argv
    sys.argv = ["simo-merge", *map(str, arguments)]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv, root.handlers[:] = argv, handlers
        root.setLevel(level)
    raise AssertionError("main always ends in SystemExit")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where these tests' experts are kept; not where their user keeps them."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMO_MERGE_CACHE", str(cache))


@pytest.fixture(scope="session")
def made(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, photos, three experts, their merge and its re-alignment. Read only."""
    folder = tmp_path_factory.mktemp("made")
    data = f"folder:{write_set(folder / 'set')}"
    for seed in range(4):
        write_picture(folder / "photos" / f"photo-{seed}.jpg", seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMO_MERGE_CACHE", str(cache))
        for task in TASKS:
            assert call("-q", "train", "--task", task, "--data", data, *ENCODER, *SHORT, "-o", folder / task) == 0
        experts = [folder / task for task in TASKS]
        assert call("-q", "merge", *experts, "--base", "random", "-o", folder / "merged") == 0
        assert call("-q", "realign", folder / "merged", "--data", data, "--rank", 4, "-o", folder / "aligned") == 0
    return folder


@pytest.fixture
def data(made: Path) -> str:
    """The specification of the small data set."""
    return f"folder:{made / 'set'}"


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies something that was made, so that a test can damage it."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(made / name, tmp_path / f"copy-of-{name}"))

    return copy


@pytest.fixture
def program(capfd: pytest.CaptureFixture[str]) -> Program:
    """Runs the program with these arguments."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        status = call(*arguments)
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture
def refused(program: Program, tmp_path: Path) -> Refused:
    """Runs the program with arguments that are wrong; returns the one line that it says.

    `OUT` among the arguments is a directory that must not appear.
    """

    def run(*arguments: object) -> str:
        output = tmp_path / "refused"
        outcome = program("-q", *(output if argument == "OUT" else argument for argument in arguments))
        assert outcome.status == 2, outcome
        assert outcome.out == ""
        lines = outcome.err.splitlines()
        assert len(lines) == 1, outcome.err
        assert lines[0].startswith("error: ")
        assert not [path.name for path in tmp_path.iterdir() if "refused" in path.name], "something was written"
        return lines[0]

    return run
