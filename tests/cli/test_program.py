"""The program: what its help teaches, and how it ends."""

from __future__ import annotations

import logging

import pytest

import simo_merge
from simo_merge.cli import app as app_module
from simo_merge.errors import SimoError
from tests.cli.conftest import Program, Refused

COMMANDS = (
    *("demo", "train", "train-joint", "import", "merge", "merge-files", "realign"),
    *("evaluate", "features", "affinity", "predict", "check-data", "export", "inspect"),
)


def test_without_arguments_it_says_what_there_is(program: Program) -> None:
    alone, asked = program(), program("--help")
    assert alone.status == asked.status == 0
    assert alone.out == asked.out
    for command in COMMANDS:
        assert f"\n  {command} " in alone.out


def test_the_list_of_commands_cuts_no_description_short(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = program("--help").out.partition("Commands:")[2].strip().splitlines()
    assert len(listed) == len(COMMANDS)
    assert not [line for line in listed if "..." in line]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(program: Program, command: str) -> None:
    outcome = program(command, "-h")
    assert outcome.status == 0
    assert f"Usage: simo-merge {command}" in outcome.out
    assert command == "demo" or f"Example: simo-merge {command} " in outcome.out
    assert " range>" not in outcome.out


def test_it_says_its_version(program: Program) -> None:
    outcome = program("--version")
    assert (outcome.status, outcome.out) == (0, f"simo-merge {simo_merge.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["--nope"], "No such option: --nope; see simo-merge --help"),
        (["merge", "--nope"], "No such option: --nope; see simo-merge merge --help"),
        (["train"], "Missing option '--task'; see simo-merge train --help"),
        (["predict", "model"], "Missing argument"),
        (["train", "--task", "depth", "--data", "rooms", "-o", "OUT", "--steps", "many"], "'--steps'"),
        (["train", "--task", "depth", "--data", "rooms", "-o", "OUT", "--workers", "-1"], "'--workers'"),
        (["train", "--task", "depth", "--data", "rooms", "-o", "OUT", "--batch-size", "0"], "'--batch-size'"),
        (["predict", "model", "photo.jpg", "-o", "OUT", "--longer-side", "0"], "'--longer-side'"),
    ],
)
def test_a_mistyped_command_line_is_one_line(refused: Refused, arguments: list[str], said: str) -> None:
    assert said in refused(*arguments)


def ends_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(app_module, "app", fail)


def test_a_mistake_of_the_user_is_one_line_whatever_its_message(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_with(monkeypatch, SimoError("seen\n  expected\tdo"))
    assert refused("inspect") == "error: seen expected do"


def test_a_full_disk_is_one_line(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, OSError(28, "No space left on device", "model.safetensors"))
    assert "No space left on device: 'model.safetensors'" in refused("inspect")


def test_a_bug_ends_in_a_traceback(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        program("inspect")


def test_interrupting_it_is_no_bug(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simo_merge.cli.use_commands.load", interrupt)
    outcome = program("inspect", "model")
    assert (outcome.status, outcome.err) == (130, "interrupted\n")


def test_the_log_goes_to_standard_error_and_quiet_leaves_the_warnings(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(*_: object) -> None:
        logging.getLogger("simo_merge").info("how it goes")
        logging.getLogger("simo_merge").warning("what is wrong")
        raise SimoError("over")

    monkeypatch.setattr("simo_merge.cli.use_commands.load", tell)
    assert program("inspect", "model").err == "how it goes\nwhat is wrong\nerror: over\n"
    assert program("-q", "inspect", "model").err == "what is wrong\nerror: over\n"
