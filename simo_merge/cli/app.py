"""The `simo-merge` program: its commands, its log, and how errors end."""

from __future__ import annotations

import logging
import sys

import typer

from simo_merge.cli import commands
from simo_merge.errors import SimoError

_HELP = """Merge single-task vision models into one multi-task model, and give each decoder back its features.

The usual way: `train` (or `import`) one expert a task from the same base weights, `merge` them, `realign` the
merged model with unlabelled images, `evaluate` it against the experts, then `predict`. `demo` does all of it.
"""

app = typer.Typer(name="simo-merge", help=_HELP, no_args_is_help=True, rich_markup_mode=None, add_completion=False)
app.command("demo")(commands.demo)
app.command("train")(commands.train)
app.command("import")(commands.import_model)
app.command("merge")(commands.merge)
app.command("realign")(commands.realign)
app.command("evaluate")(commands.evaluate)
app.command("predict")(commands.predict)
app.command("inspect")(commands.inspect)


@app.callback()
def _start(
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Say only what went wrong."),
) -> None:
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr, force=True
    )
    for noisy in ("timm", "httpx", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def main() -> None:
    """Run the program; a `SimoError` becomes one line on standard error and exit status 2."""
    try:
        app()
    except SimoError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
