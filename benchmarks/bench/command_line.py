"""The options that all benchmark scripts have, and their recipe."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.recipe import Recipe
from bench.recipe_file import RECIPES, read_recipe
from bench.rows import Rows
from bench.shelf import Shelf
from simo_merge.data import parse_spec
from simo_merge.device import resolve_device
from simo_merge.errors import SimoError


@dataclass(frozen=True)
class Run:
    """What a script was asked for.

    recipe: with what the command line replaces in it. spec: the data set. output: results file. device: where to
    compute. given: the script's own options.
    """

    recipe: Recipe
    spec: str
    output: Path
    device: torch.device
    given: argparse.Namespace

    def rows(self) -> Rows:
        """The results file."""
        encoder = self.recipe.encoder
        return Rows(self.output, self.device, {"recipe": self.recipe.name, "encoder": encoder.name})

    def shelf(self, seed: int, tasks: Sequence[str] | None = None) -> Shelf:
        """The experts of a seed, after a look whether data and base weights are there."""
        shelf = Shelf(self.recipe, self.spec, seed, tasks or self.recipe.tasks, self.device)
        for use in ("train", "calibration", "validation", "test"):
            shelf.open(use, shelf.tasks)
        assert shelf.base.sha256
        return shelf


def parse(
    name: str,
    description: str,
    arguments: Sequence[str] | None,
    more: Callable[[argparse.ArgumentParser], None],
    recipes: Path = RECIPES,
) -> Run:
    """Read the command line.

    Args:
        name: of the script; its results go to `results/NAME-RECIPE.json`.
        description: its docstring.
        arguments: None takes those of the process.
        more: adds the script's own options.
        recipes: folder of the recipes that data sets have for it.

    Raises:
        SimoError: no recipe for this data set, or as `read_recipe`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="rooms", metavar="SPEC", help="rooms, nyuv2:DIR, cityscapes:DIR, ...")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="default: that of the data set's format")
    parser.add_argument("--encoder", metavar="NAME", help="a timm ViT, instead of the recipe's")
    parser.add_argument("--weights", metavar="SOURCE", help="of the encoder: a file, timm, package or random")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N")
    parser.add_argument("--quick", action="store_true", help="the recipe's trial: minutes, and no result")
    parser.add_argument("--threads", type=int, help="threads of torch; default: as many as cores")
    parser.add_argument("--device", metavar="NAME", help="default: a GPU if there is one")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"default: results/{name}-RECIPE.json")
    more(parser)
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = read_recipe(given.recipe or _recipe_of(given.data, recipes), given.quick, _overrides(given))
    output = given.output or Path("results") / f"{name}-{recipe.name}{'-quick' if given.quick else ''}.json"
    if given.quick and given.output is None:
        start_anew(output)
    return Run(recipe, given.data, output, resolve_device(given.device), given)


def start_anew(output: Path) -> None:
    """Remove what an earlier trial left: rows that are there would not be measured, whatever has changed since."""
    for path in (output, *output.parent.glob(f"{output.stem}-*.json")):
        path.unlink(missing_ok=True)


def timings_file(stem: str, device: torch.device, quick: bool) -> Path:
    """Where seconds go: each kind of device has a file of its own, the CPU's without its name."""
    of_device = "" if device.type == "cpu" else f"-{device.type}"
    return Path("results") / f"{stem}{of_device}{'-quick' if quick else ''}.json"


def run(main: Callable[[], int]) -> None:
    """Run a script; a mistake of the user ends in one line."""
    try:
        sys.exit(main())
    except SimoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _recipe_of(spec: str, recipes: Path) -> Path:
    prefix = parse_spec(spec).prefix
    path = recipes / f"{prefix}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in recipes.glob("*.yaml")))
        raise SimoError(f"there is no recipe for {prefix or spec!r} (recipes: {known}); give one with --recipe FILE")
    return path


def _overrides(given: argparse.Namespace) -> dict[str, Any]:
    encoder = {"name": given.encoder, "weights": given.weights}
    encoder = {key: value for key, value in encoder.items() if value is not None}
    more: dict[str, Any] = {"encoder": encoder} if encoder else {}
    return more if given.seeds is None else more | {"seeds": given.seeds}
