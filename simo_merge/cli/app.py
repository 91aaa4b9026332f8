"""The `simo-merge` program: its commands, its log, and how errors end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import typer

from simo_merge import __version__
from simo_merge.cli import (
    affinity_command,
    check_data,
    features_command,
    file_commands,
    joint_commands,
    make_commands,
    realign_command,
    use_commands,
)
from simo_merge.distributed import end, is_main, world_size
from simo_merge.errors import SimoError

_SHARED = ("train", "train-joint", "realign", "evaluate")
"""Commands whose work several processes share."""

_HELP = """Merge single-task vision models into one multi-task model, and give each decoder back its features.

The usual way: `train` (or `import`) one expert a task from the same base weights, `merge` them, `realign` the
merged model with unlabelled images, `evaluate` it against the experts, then `predict`. `demo` does all of it.
"""

# What a mistyped command line raises. typer exports only this child of it, and where the parent lives (click, or
# typer's own copy of it) depends on the version.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="simo-merge",
    help=_HELP,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", short_help="All of it on the embedded rooms, ending in a report.")(make_commands.demo)
app.command("train", short_help="Fine-tune an expert: one task, from base weights.")(make_commands.train)
app.command("train-joint", short_help="Train one model for several tasks at once, to compare.")(
    joint_commands.train_joint_command
)
app.command("import", short_help="Take an expert from segmentation_models_pytorch.")(make_commands.import_model)
app.command("merge", short_help="Merge experts into one encoder.")(make_commands.merge)
app.command("merge-files", short_help="Merge files of weights, without models.")(file_commands.merge_files)
app.command("realign", short_help="Fit a merged model to its experts, without labels.")(realign_command.realign)
app.command("evaluate", short_help="Score a model on labels, against its experts.")(use_commands.evaluate)
app.command("features", short_help="Draw merged features beside the experts'.")(features_command.features)
app.command("affinity", short_help="Which tasks should share an encoder?")(affinity_command.affinity)
app.command("predict", short_help="Predict every task for pictures.")(use_commands.predict)
app.command("check-data", short_help="Is a data set sound, or what is wrong?")(check_data.check_data)
app.command("export", short_help="Write a checkpoint's encoder for timm.")(file_commands.export)
app.command("inspect", short_help="Say what a checkpoint holds.")(use_commands.inspect)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"simo-merge {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    context: typer.Context,
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Say only what went wrong, and the result."),
    version: bool = typer.Option(False, "--version", help="Say the version.", is_eager=True, callback=_print_version),
) -> None:
    if world_size() > 1 and context.invoked_subcommand not in _SHARED:
        raise SimoError(
            f"{context.invoked_subcommand} is the work of one process, but {world_size()} were started; start it "
            f"without torchrun. Processes share the work of {', '.join(_SHARED)}"
        )
    level = logging.WARNING if quiet else logging.INFO
    if not is_main():  # one of them tells, for all do the same
        level = logging.ERROR
        context.call_on_close(_silenced())
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("timm", "httpx", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _silenced() -> Callable[[], None]:
    """Send what this process prints nowhere; the function undoes it."""
    before = sys.stdout
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # open until the command has ended
    sys.stdout = nowhere

    def undo() -> None:
        sys.stdout = before
        nowhere.close()

    return undo


def main() -> None:
    """Run the program.

    What the user can mend (a `SimoError`, a mistyped command line, a file that cannot be written) becomes one line
    on standard error and exit status 2.
    """
    try:
        status = app(args=sys.argv[1:] or ["--help"], prog_name="simo-merge", standalone_mode=False)
    except SimoError as error:
        _fail(str(error))
    except _UsageError as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "simo-merge")
        _fail(f"{error.format_message().rstrip('.')}; see {command} --help")  # type: ignore[attr-defined]
    except OSError as error:  # full disk, no permission: no bug, and the operating system says what it is
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    if status == 130:
        typer.echo("interrupted", err=True)
    end()
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    which = f"process {os.environ['RANK']}: " if os.environ.get("RANK", "0") != "0" else ""
    typer.echo(f"error: {which}{' '.join(message.split())}", err=True)
    sys.exit(2)
