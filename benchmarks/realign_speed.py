"""How fast a re-alignment is fitted: the published loop, and closed-form surgery from one pass of moments.

    python benchmarks/realign_speed.py --experts runs/seg runs/depth runs/normals --data rooms --split calibration
    python benchmarks/realign_speed.py --made 400 --size 280x378 --encoder vit_base_patch14_dinov2 --device cuda
    python benchmarks/realign_speed.py --quick

Surgery as published (arXiv 2402.02705; so in its own code and in fusion-bench) runs the frozen encoders inside the
optimisation: every step takes a batch, forwards it through the merged encoder and the experts, and makes one step of
Adam on the L1 distance of the corrected features to the experts'. `loop` is that, in its favour where the setting
allows it: all tasks read the same image, so the merged encoder runs once a step and not once a task; images are decoded
once and stay in memory; measuring the error stops its clock. `cached` makes the same steps on features that were
computed once. `closed form` is `simo_merge.realign` as a user calls it, files to aligned model, but without the stretch
that follows by default: that is no matter of feature error. What a user gets, with it, is timed beside it, and the same
with `stream=True`, which keeps moments and no features (and always takes 16 images at a time).

All see the same images, the same rank, the same precision. The error is the L1 distance on the images held out, as a
share of what it was without re-alignment, mean over tasks and taps: the loop minimises it and the closed form does not.
Told is when the loop's error is first as low as the closed form's, or that it was not within the cap.

The second table is where the closed form's time goes, beside the bare forward passes of the same images through all
encoders: decode, forward, moments, solve, and the rest (copies, and the distances that the record keeps). Each is
measured alone; the closed form reads ahead while the encoders run, so that the rest may come out below zero.

Without `--experts` the models are the base with noise on its weights; their features are easier to align than those of
real experts, so seconds of the closed form mean something then and those of the loop do not.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

import simo_merge as sm
from bench.command_line import timings_file
from bench.parts import Part
from bench.surgery_loop import World, clocked, error_left, forwarded, loop, remembered
from bench.tables import markdown
from bench.utilisation import Utilisation
from simo_merge.data import DenseDataset, ImageFolder, open_dataset, parse_size
from simo_merge.device import autocast, resolve_device
from simo_merge.errors import SimoError
from simo_merge.models import BaseRecord, Encoder, MultiTaskModel, SingleTaskModel
from simo_merge.realign.closed_form import solve_change
from simo_merge.realign.realignment import feature_moments
from simo_merge.results import environment, replace_text
from simo_merge.tasks import Regression
from simo_merge.weights import Base, fitting_size

Row = dict[str, Any]
GOAL_FASTER, GOAL_BARE = 30.0, 1.3
HELD_OUT = 0.2
NOISE = 0.05  # of made experts, in units of each tensor's deviation

# -- what is fitted ---------------------------------------------------------------------------------------------------


def made_images(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """JPEG files of smooth random pictures."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.integers(0, 256, (size[0] // 14 + 2, size[1] // 14 + 2, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:05d}.jpg", quality=90)
    return folder


def made_experts(base: Base, count: int) -> list[SingleTaskModel]:
    """Experts that are the base with noise on its weights, under linear decoders that nothing is asked of."""
    experts = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        vit = copy.deepcopy(base.vit)
        with torch.no_grad():
            for parameter in vit.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(NOISE * parameter.std(correction=0) * noise)
        encoder, task = Encoder(vit, base.name), Regression(name=f"task{number + 1}")
        record = BaseRecord(base.name, base.source, base.sha256)
        experts.append(SingleTaskModel(encoder, sm.build_decoder("linear", encoder, 1), task, record).eval())
    return experts


# -- the closed form --------------------------------------------------------------------------------------------------


def fitted(
    world: World, images: DenseDataset, method: sm.LinearSurgery, stream: bool = False
) -> tuple[MultiTaskModel, float]:
    """The aligned model, and the seconds from files to it."""
    features = None
    with clocked(world.device) as seconds:
        if not stream:
            features = world.features(images)
        how: Row = {"device": world.device, "stream": stream, "precision": world.precision}
        model = sm.realign(world.merged, world.experts, images, method, features, **how)
    return model, seconds()


def stages(world: World, images: DenseDataset) -> Row:
    """Seconds of the parts of which the closed form consists, each measured alone."""
    encoders = [world.merged.encoder, *(expert.encoder for expert in world.experts.values())]
    with clocked(world.device) as decode:
        batches = list(world.batches(images))
    with clocked(world.device) as forward, torch.inference_mode(), autocast(world.device, world.precision):
        for encoder in encoders:
            for batch in batches:
                encoder(batch.to(world.device))
    features = world.features(images)
    with clocked(world.device) as moments:
        found = feature_moments(features, device=world.device)
    ridge = world.method.ridge
    assert not isinstance(ridge, str)
    with clocked(world.device) as solve:
        for task in world.experts:
            for tap in found:
                solve_change(tap, task, world.rank, ridge)
    return {"decode_s": decode(), "forward_s": forward(), "moments_s": moments(), "solve_s": solve()}


# -- the race ---------------------------------------------------------------------------------------------------------


def race(world: World, images: DenseDataset, asked: argparse.Namespace) -> Row:
    """All contestants on the same images; the closed form in rounds, by turns with the bare forward passes."""
    order = np.random.default_rng(0).permutation(len(images))
    cut = max(1, round(HELD_OUT * len(images)))
    held_out, seen = Part(images, sorted(order[:cut])), Part(images, sorted(order[cut:]))
    unseen = world.features(held_out)
    for _ in range(asked.warm_up):
        world.features(Part(images, order[: world.batch_size]))
    rounds, busy = [], Utilisation(world.device)
    default = sm.LinearSurgery(rank=world.rank)
    forms = {"closed_form_s": (world.method, False), "stretched_s": (default, False), "streamed_s": (default, True)}
    models: dict[str, MultiTaskModel] = {}
    for number in range(asked.rounds):
        seconds = {}
        for form in sorted(forms, reverse=bool(number % 2)):
            with busy:
                models[form], seconds[form] = fitted(world, seen, *forms[form])
        rounds.append(seconds | stages(world, seen))
        print(
            f"closed form: {seconds['closed_form_s']:.2f} s, stretched: {seconds['stretched_s']:.2f} s, streamed: "
            f"{seconds['streamed_s']:.2f} s, "
            f"bare forward passes: {rounds[-1]['forward_s']:.2f} s",
            flush=True,
        )
    aligners = {task: models["closed_form_s"].aligner(task) for task in world.experts}
    target = error_left(unseen, aligners)  # type: ignore[arg-type]
    found = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    for form, key in zip(forms, ("times_bare", "times_bare_stretched", "times_bare_streamed"), strict=True):
        found[key] = statistics.median(r[form] / r["forward_s"] for r in rounds)
    found |= {"error": target, "images": len(seen), "held_out": len(held_out), "rounds": len(rounds)}
    found |= {"gpu_busy_percent": busy.percent} if busy.percent is not None else {}
    loops = []
    for name, source in (("loop", forwarded), ("cached", remembered)):
        for lr in asked.lrs:
            loops.append({"contestant": name, **loop(world, source(world, seen), unseen, lr, target, asked.cap)})
            print(told(loops[-1], found), flush=True)
    return {"closed_form": found, "loops": loops}


# -- telling ----------------------------------------------------------------------------------------------------------


def told(run: Row, closed: Row) -> str:
    """How a loop fared against the closed form."""
    if run["reached_s"] is None:
        times = run["seconds"] / closed["closed_form_s"]
        said = f"not reached in {run['seconds']:.1f} s, {times:.0f} times as long (best {run['best_error']:.3f})"
    else:
        said = f"reached in {run['reached_s']:.1f} s, {run['reached_s'] / closed['closed_form_s']:.1f} times as long"
    return f"{run['contestant']}, lr {run['lr']:g}: error {closed['error']:.3f} {said}, {run['steps']} steps"


def table(found: Row) -> str:
    """Contestants, then where the closed form's time goes."""
    closed = found["closed_form"]
    lines = [["closed form", "", f"{closed['closed_form_s']:.2f}", f"{closed['error']:.3f}", "1", ""]]
    for run in found["loops"]:
        name = {"loop": "published loop", "cached": "the same steps on cached features"}[run["contestant"]]
        spent = run["seconds"] if run["reached_s"] is None else run["reached_s"]
        at_least = "> " if run["reached_s"] is None else ""
        times = f"{at_least}{spent / closed['closed_form_s']:.1f}"
        cells = [f"{name}, lr {run['lr']:g}", str(run["steps"]), f"{at_least}{spent:.1f}", f"{run['best_error']:.3f}"]
        lines.append([*cells, times, f"{run['seconds_a_step']:.3f}"])
    first = markdown(["", "steps", "seconds to its error", "error left", "times", "a step, s"], lines)
    parts = ("decode_s", "forward_s", "moments_s", "solve_s")
    rest = closed["closed_form_s"] - sum(closed[part] for part in parts)
    cells = [f"{closed['closed_form_s']:.2f}", *(f"{closed[part]:.2f}" for part in parts), f"{rest:.2f}"]
    cells += [f"{closed['times_bare']:.2f}"]
    others = [
        [name, f"{closed[f'{form}_s']:.2f}", *[""] * 5, f"{closed[f'times_bare_{form}']:.2f}"]
        for name, form in (("closed form, stretched", "stretched"), ("the same, streamed", "streamed"))
    ]
    second = markdown(
        ["", "files to aligned model, s", "decode", "forward", "moments", "solve", "rest", "times the bare forward"],
        [["closed form", *cells], *others],
    )
    return first + "\n" + second


def verdicts(found: Row) -> str:
    """The goals, and whether they are met."""
    closed, loops = found["closed_form"], [run for run in found["loops"] if run["contestant"] == "loop"]
    spent = min(run["seconds"] if run["reached_s"] is None else run["reached_s"] for run in loops)
    times, reached = spent / closed["closed_form_s"], any(run["reached_s"] is not None for run in loops)
    faster = "met" if times >= GOAL_FASTER else ("not met" if reached else "not decided within the cap")
    kept, streamed = (
        f"{'met' if closed[key] <= GOAL_BARE else 'not met'} ({closed[key]:.2f} times)"
        for key in ("times_bare_stretched", "times_bare_streamed")
    )
    busy = f", a GPU {closed['gpu_busy_percent']:.0f} % of the time busy" if "gpu_busy_percent" in closed else ""
    return (
        f"{GOAL_FASTER:.0f} times faster than the published loop: {faster} "
        f"({'' if reached else 'more than '}{times:.1f} times)\n"
        f"at most {GOAL_BARE} times the bare forward passes: {kept}, streamed {streamed}, without the stretch "
        f"{closed['times_bare']:.2f} times\n"
        f"files to aligned model: {closed['stretched_s']:.2f} s, streamed {closed['streamed_s']:.2f} s, for "
        f"{closed['images']} images{busy}"
    )


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", nargs="+", metavar="DIR", help="saved experts of one base")
    parser.add_argument("--count", type=int, default=3, help="how many experts are made, where none are given")
    parser.add_argument("--encoder", default="vit_small_patch14_dinov2", metavar="NAME", help="of made experts")
    parser.add_argument("--weights", metavar="SOURCE", help="of its base: a file, timm, package or random")
    parser.add_argument("--data", default="rooms", metavar="SPEC", help="calibration images; images:DIR for a folder")
    parser.add_argument("--split", metavar="NAME", help="default: calibration, or all images of a folder")
    parser.add_argument("--images", type=int, metavar="N", help="at most so many, held-out ones included")
    parser.add_argument("--made", type=int, metavar="N", help="instead: N JPEG files, made up, and N/4 to hold out")
    parser.add_argument("--size", type=parse_size, default=(126, 168), metavar="HxW", help="of those")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-3], help="of the loop; published: 1e-3")
    parser.add_argument("--batch-size", type=int, default=16, help="images at a time, in every contestant")
    parser.add_argument("--every", type=int, default=10, help="steps between two looks at the held-out error")
    parser.add_argument("--cap", type=float, default=1200.0, help="seconds that each loop may take")
    parser.add_argument("--rounds", type=int, default=3, help="of the closed form")
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "auto"))
    parser.add_argument("--threads", type=int, help="threads of torch; default: as many as cores")
    parser.add_argument("--device", metavar="NAME", help="default: a GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="a small made-up case, and no result")
    parser.add_argument("-o", "--output", type=Path, help="default: results/realign_speed.json, on a GPU ...-cuda.json")
    found = parser.parse_args(given)
    if found.quick:
        found.encoder, found.weights, found.experts = "vit_tiny_patch16_224", "random", None
        found.made, found.size, found.rounds, found.cap, found.rank = 20, (64, 96), 1, 10.0, 16
    return found


def main(given: Sequence[str] | None = None) -> int:
    asked = arguments(given)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    device = resolve_device(asked.device)
    output = asked.output or timings_file("realign_speed", device, asked.quick)
    with tempfile.TemporaryDirectory() as folder:
        images = opened(asked, Path(folder))
        base = None
        if asked.experts:
            experts = [sm.load_expert(path) for path in asked.experts]
        else:
            base = sm.load_base(asked.encoder, asked.weights, fitting_size(asked.encoder, *images[0].size))
            experts = made_experts(base, asked.count)
        merged = sm.merge(experts, sm.WeightAverage(), base)
        world = World(
            merged,
            experts,
            asked.rank,
            device,
            asked.precision,
            asked.batch_size,
            asked.every,
        )
        where = {**environment(world.device), "cores": str(os.cpu_count()), "load before": f"{os.getloadavg()[0]:.1f}"}
        where |= {key: str(getattr(asked, key)) for key in ("rank", "batch_size", "precision", "cap")}
        where |= {"encoder": experts[0].encoder.name, "experts": "given" if asked.experts else "made"}
        where |= {"data": f"{images.name}, {images.split}", "image size": str(list(images[0].size))}
        found = race(world, images, asked)
    where["load after"] = f"{os.getloadavg()[0]:.1f}"
    replace_text(output, json.dumps({"environment": where, **found}, indent=2) + "\n")
    print("\n" + table(found) + "\n" + verdicts(found), f"-> {output}", sep="\n")
    return 0


def opened(asked: argparse.Namespace, folder: Path) -> DenseDataset:
    """The calibration images."""
    if asked.made:
        return ImageFolder(made_images(folder, round(asked.made / (1 - HELD_OUT)), asked.size))
    split = asked.split or (None if asked.data.startswith("images:") else "calibration")
    images = open_dataset(asked.data, split, [])
    return images if asked.images is None or asked.images >= len(images) else Part(images, range(asked.images))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SimoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
