"""What prediction costs: T experts, the aligned model, and the least that T decoders behind one encoder can cost.

    python benchmarks/inference.py                                        # ViT-S/14 at 126 x 168, T = 1 to 8
    python benchmarks/inference.py --encoder vit_base_patch14_dinov2 --size 280x378 --compile 3
    python benchmarks/inference.py --quick

Contestants have random weights, which cost what any cost. `experts` are T single-task models, one after another;
`aligned` is one encoder, T aligners (closed-form surgery, stretched, as it is by default) and T decoders; `folded` the
same with the aligners multiplied into the decoders, where that is exact; `all taps` has aligners that predict each tap
from all, and `all taps, folded` decoders that read all; `floor` has no aligners at all. Latency is of one image,
throughput of eight.
All take turns in every round, so that what else the machine does meets them all; ratios are taken within a round and
the table has medians of rounds. Memory is that of a process of its own on a CPU (its peak once the model is made, less
what Python and torch take before), and what is allocated at the peak on a GPU; that of compiled models is not measured.

The goal is what is folded within 5 % of `floor`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

import simo_merge as sm
from bench.command_line import timings_file
from bench.tables import markdown
from simo_merge.data import parse_size
from simo_merge.device import autocast, peak_memory, resolve_device
from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.models.aligners import DIRECTIONS, Aligner
from simo_merge.results import environment, replace_text
from simo_merge.tasks import Regression, Segmentation, Task

Row = dict[str, Any]
FOLDED = ("folded", "all taps, folded")
CONTESTANTS = ("experts", "floor", "aligned", "all taps", *FOLDED)
CLASSES = 13
GOAL = 1.05

# -- contestants ------------------------------------------------------------------------------------------------------


def tasks_of(count: int) -> list[Task]:
    """Tasks by turns of thirteen classes, one channel and three."""
    classes = tuple(f"class {i}" for i in range(CLASSES))
    kinds: list[Callable[[str], Task]] = [
        lambda name: Segmentation(name=name, classes=classes),
        lambda name: Regression(name=name),
        lambda name: Regression(name=name, channels=3),
    ]
    return [kinds[i % 3](f"task{i + 1}") for i in range(count)]


def expert(task: Task, asked: Row) -> SingleTaskModel:
    height, width = asked["size"]
    encoder = sm.Encoder(sm.build_vit(asked["encoder"], (height, width)), asked["encoder"])
    decoder = sm.build_decoder(asked["decoder"], encoder, task.out_channels)
    return SingleTaskModel(encoder, decoder, task).eval()


def multi_task(tasks: Sequence[Task], asked: Row, kind: str | None) -> MultiTaskModel:
    """One encoder with a decoder a task; kind: of the aligners, None for no aligners."""
    first = expert(tasks[0], asked)
    decoders = {t.name: sm.build_decoder(asked["decoder"], first.encoder, t.out_channels) for t in tasks}
    aligners = {}
    if kind is not None:
        for task in tasks:
            channels, prefix_tokens = first.encoder.tap_channels, first.encoder.prefix_tokens
            rank = {} if kind == "full-affine" else {"rank": asked["rank"]}
            made = Aligner(kind, channels, prefix_tokens, **rank, stretched=DIRECTIONS)
            for parameter in made.parameters():
                nn.init.normal_(parameter, std=0.01)
            aligners[task.name] = made
    return MultiTaskModel(first.encoder, decoders, {t.name: t for t in tasks}, aligners).eval()


def contestant(name: str, tasks: Sequence[Task], asked: Row) -> list[nn.Module]:
    """The models that have to be run, on their device."""
    torch.manual_seed(0)
    if name == "experts":
        models: list[nn.Module] = [expert(task, asked) for task in tasks]
    elif name == "floor":
        models = [multi_task(tasks, asked, None)]
    else:
        own = "full-affine" if asked["rank"] is None else "linear-surgery"
        aligned = multi_task(tasks, asked, "cross-tap" if name.startswith("all taps") else own)
        models = [sm.fold_aligners(aligned) if name in FOLDED else aligned]
    models = [model.to(asked["device"]) for model in models]
    return [torch.compile(model) for model in models] if asked["compile"] else models  # type: ignore[misc]


# -- measuring --------------------------------------------------------------------------------------------------------


def run(models: Sequence[nn.Module], images: Tensor, precision: str) -> None:
    with torch.inference_mode(), autocast(images.device, precision):
        for model in models:
            model(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)


def timed(models: Sequence[nn.Module], images: Tensor, precision: str) -> float:
    began = time.perf_counter()
    run(models, images, precision)
    return time.perf_counter() - began


def rounds_of(made: dict[str, list[nn.Module]], asked: Row, batch: int) -> dict[str, list[float]]:
    """Seconds of every round; the first ones, where memory is laid out or code compiled, are not counted."""
    images = torch.rand(batch, 3, *asked["size"], generator=torch.Generator().manual_seed(0)).to(asked["device"])
    for models in made.values():
        for _ in range(asked["warm_up"]):
            run(models, images, asked["precision"])
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for number in range(asked["rounds"]):
        order = list(made) if number % 2 == 0 else list(reversed(made))
        for name in order:
            seconds[name].append(timed(made[name], images, asked["precision"]))
    return seconds


def memory(name: str, count: int, asked: Row) -> float:
    """MiB that a contestant takes at its peak, with a batch of the largest size: on a GPU what is allocated there, else
    what a process of its own takes."""
    asked = {**asked, "compile": False}
    if asked["device"].type == "cuda":
        return held(name, count, asked)
    job = {**asked, "device": str(asked["device"])}
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name, str(count), json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SimoError(f"{name} with {count} tasks failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return float(done.stdout.strip().splitlines()[-1])


def child(name: str, count: int, asked: Row) -> None:
    """Measure a contestant's memory and say it in the last line."""
    torch.set_num_threads(asked["threads"])
    print(held(name, count, {**asked, "device": torch.device(asked["device"])}))


def held(name: str, count: int, asked: Row) -> float:
    """MiB that this process holds at the peak beside what it held before."""
    device = asked["device"]
    images = torch.rand(max(asked["batches"]), 3, *asked["size"]).to(device)
    forget_peak(device)
    before = most_held(device)
    models = contestant(name, tasks_of(count), asked)
    forget_peak(device)
    run(models, images, asked["precision"])
    return (most_held(device) - before) / 2**20


def forget_peak(device: torch.device) -> None:
    """Begin the high-water mark anew: what making a model took (folding copies it) is not what running it takes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # of glibc alone
        Path("/proc/self/clear_refs").write_text("5")


def most_held(device: torch.device) -> int:
    """Most bytes that this process held so far, on a GPU those allocated there.

    Linux hands `ru_maxrss` of the parent on to a process that it starts, so the high-water mark is read instead.
    """
    status = Path("/proc/self/status")
    if device.type == "cuda" or not status.is_file():
        return peak_memory(device)
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def measure(count: int, asked: Row) -> list[Row]:
    """The rows of one number of tasks."""
    tasks = tasks_of(count)
    taken = {name: memory(name, count, asked) for name in CONTESTANTS} if asked["memory"] else {}
    made = {name: contestant(name, tasks, asked) for name in CONTESTANTS}
    left = {name: len(getattr(made[name][0], "_orig_mod", made[name][0]).aligners) for name in FOLDED}
    rows = []
    for batch in asked["batches"]:
        seconds = rounds_of(made, asked, batch)
        for name in CONTESTANTS:
            against = {
                f"times_{other}": statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))
                for other in ("floor", "experts")
            }
            middle = statistics.median(seconds[name])
            row = {"tasks": count, "contestant": name, "mode": "compiled" if asked["compile"] else "eager"}
            row |= {"batch": batch, "seconds": middle, "images_per_second": batch / middle, **against}
            row |= {"not_folded": left[name]} if name in FOLDED else {}
            rows.append(row | ({"memory_mib": taken[name]} if taken else {}))
    return rows


# -- telling ----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """A line a number of tasks and contestant: latency, throughput, memory, and how far from the floor."""
    lines = []
    for count, mode, name in dict.fromkeys((r["tasks"], r["mode"], r["contestant"]) for r in rows):
        same = sorted(
            (r for r in rows if (r["tasks"], r["mode"], r["contestant"]) == (count, mode, name)),
            key=lambda r: r["batch"],
        )
        first, last = same[0], same[-1]
        lines.append(
            [
                str(count),
                mode,
                name,
                f"{1000 * first['seconds']:.0f}",
                f"{last['images_per_second']:.1f}",
                f"{first['times_floor']:.2f}, {last['times_floor']:.2f}",
                f"{1 / first['times_experts']:.2f}, {1 / last['times_experts']:.2f}",
                f"{last['memory_mib']:.0f}" if "memory_mib" in last else "",
            ]
        )
    batches = sorted({r["batch"] for r in rows})
    small, large = batches[0], batches[-1]
    head = ["T", "mode", "model", f"latency, ms (batch {small})", f"images/s (batch {large})"]
    return markdown([*head, "times the floor's time", "times faster than the experts", "memory, MiB"], lines)


def told(rows: Sequence[Row]) -> str:
    """Whether the goal is met, and by how much not."""
    lines = []
    for name in FOLDED:
        of_name = [row for row in rows if row["contestant"] == name]
        if not of_name:
            continue
        worst = max(of_name, key=lambda row: row["times_floor"])
        verdict = "met" if worst["times_floor"] <= GOAL else "not met"
        kept = worst.get("not_folded", 0)
        left = f"; {kept} aligners could not be folded" if kept else ""
        lines.append(
            f"{name} within {100 * (GOAL - 1):.0f} % of the floor: {verdict}; at most {worst['times_floor']:.3f} times "
            f"(T = {worst['tasks']}, batch {worst['batch']}, {worst['mode']}){left}."
        )
    return " ".join(lines)


def rank(text: str) -> int | None:
    return None if text == "none" else int(text)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="vit_small_patch14_dinov2", metavar="NAME")
    parser.add_argument("--decoder", default="dpt", choices=("dpt", "linear"))
    parser.add_argument("--size", type=parse_size, default=(126, 168), metavar="HxW")
    parser.add_argument("--tasks", type=int, nargs="+", default=list(range(1, 9)), metavar="T")
    parser.add_argument("--rank", type=rank, default=64, metavar="N|none", help="of the aligners; none: full matrices")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16", "auto"))
    parser.add_argument(
        "--compile", type=int, nargs="*", metavar="T",
        help="compiled models too (a CPU needs a C++ compiler), of T tasks; without T of all that --tasks names",
    )  # fmt: skip
    parser.add_argument("--no-memory", action="store_true", help="do not start processes to measure memory")
    parser.add_argument("--threads", type=int, help="threads of torch; default: as many as cores")
    parser.add_argument("--device", metavar="NAME", help="default: a GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="small, T = 1 and 3, whatever else is asked; no result")
    parser.add_argument("-o", "--output", type=Path, help="default: results/inference.json, on a GPU ...-cuda.json")
    parser.add_argument("--child", nargs=3, metavar=("NAME", "T", "JOB"), help=argparse.SUPPRESS)
    found = parser.parse_args(given)
    if found.quick:
        found.encoder, found.tasks, found.rounds, found.size = "vit_tiny_patch16_224", [1, 3], 3, (64, 96)
    return found


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    if options.child:
        child(options.child[0], int(options.child[1]), json.loads(options.child[2]))
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    output = options.output or timings_file("inference", device, options.quick)
    asked: Row = {
        key: getattr(options, key) for key in ("encoder", "decoder", "rank", "batches", "rounds", "precision")
    }
    asked |= {"size": list(options.size), "device": device, "threads": torch.get_num_threads()}
    where = {**environment(device), "cores": str(os.cpu_count()), "load before": f"{os.getloadavg()[0]:.1f}"}
    where |= {key: str(asked[key]) for key in ("encoder", "decoder", "rank", "rounds", "precision", "size")}
    rows: list[Row] = []
    if device.type == "cuda":  # the first run also allocates what the libraries keep
        memory("floor", 1, asked)
    for compiled in (False, True) if options.compile is not None else (False,):
        more = {"compile": compiled, "warm_up": 3 if compiled else 1, "memory": not (compiled or options.no_memory)}
        for count in (compiled and options.compile) or options.tasks:
            torch.compiler.reset()
            rows += measure(count, asked | more)
            where["load after"] = f"{os.getloadavg()[0]:.1f}"
            replace_text(output, json.dumps({"environment": where, "rows": rows}, indent=2) + "\n")
            print(f"{count} tasks, {rows[-1]['mode']}: measured", flush=True)
    print("\n" + table(rows) + "\n" + told(rows), f"-> {output}", sep="\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SimoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
