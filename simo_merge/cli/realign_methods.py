"""What the command line says of the re-alignment methods."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from simo_merge.cli.merge_options import say_method
from simo_merge.realign import REALIGNMENTS


def list_realignments(wanted: bool) -> None:
    """Say every re-alignment with its purpose, its options and what it needs, and end."""
    if not wanted:
        return
    for name, method in REALIGNMENTS.items():
        purpose = (inspect.getdoc(method) or "").partition("\n")[0]
        options = {option.name: option.default for option in inspect.signature(method).parameters.values()}
        needs = "labels" if method().needs_labels else "no labels"
        passes = "up to one encoder pass a task" if method.task_specific else "one encoder pass"
        say_method(name, purpose, options, needs, passes)
    raise typer.Exit


ListRealignments = Annotated[
    bool,
    typer.Option(
        "--list-methods",
        help="Say every method, its options and what it needs.",
        is_eager=True,
        callback=list_realignments,
    ),
]
