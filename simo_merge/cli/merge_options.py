"""Options of merge methods as text, and what there is to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
import yaml

from simo_merge.errors import SimoError
from simo_merge.merging.describe import describe_method
from simo_merge.merging.registry import MERGE_METHODS

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="An option of the method, once for each; --list-methods lists them."
    ),
]
ResamplePosEmbed = Annotated[
    bool,
    typer.Option("--resample-pos-embed", help="Bring position embeddings of another image size to the base's grid."),
]


def parse_settings(given: Sequence[str] | None, flags: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`NAME=VALUE` texts as options; values are YAML, so `0.3`, `true`, `[0.2, 0.4]` and `mean` are what they seem.

    flags: those on the command line that give an option, by the option's name.

    Raises:
        SimoError: no `=`, a name given twice, here or by a flag, or a value that is no YAML.
    """
    options: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise SimoError(f"--set takes NAME=VALUE, got {text!r}")
        name = name.strip()
        if name in options:
            raise SimoError(f"--set gives {name} twice")
        if flags and name in flags:
            raise SimoError(f"{flags[name]} and --set {name}=... are one thing; give one of them")
        try:
            options[name] = _number_or_value(value)
        except yaml.YAMLError as error:
            raise SimoError(f"--set {name}: {value!r} is no value") from error
    return options


def _number_or_value(text: str) -> Any:
    value = None if text.strip().lower() == "none" else yaml.safe_load(text)
    if isinstance(value, str):  # YAML takes 1e-5 and 1e2 for texts
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else number
    return value


def list_methods(wanted: bool) -> None:
    """Say every merge method with its purpose, its options and what it needs, and end."""
    if not wanted:
        return
    for name in sorted(MERGE_METHODS):
        facts = describe_method(name)
        needs = "weights alone" if facts.needs == "nothing" else facts.needs
        passes = "one encoder pass" if facts.one_pass else "one encoder pass a task"
        say_method(name, facts.purpose, facts.options, needs, passes)
    raise typer.Exit


ListMethods = Annotated[
    bool,
    typer.Option(
        "--list-methods", help="Say every method, its options and what it needs.", is_eager=True, callback=list_methods
    ),
]


def say_method(name: str, purpose: str, options: Mapping[str, Any], needs: str, passes: str) -> None:
    """Three lines: what a method is for, its options as `--set` takes them, what it needs and costs."""
    told = ", ".join(f"{option}={_shown(value)}" for option, value in options.items()) or "no options"
    typer.echo(f"{name}: {purpose}\n    {told}\n    needs {needs}; {passes}")


def _shown(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
