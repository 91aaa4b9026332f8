"""How fast files of weights merge, and in how much memory: simo_merge, mergekit and fusion-bench.

    python benchmarks/merge_speed.py --peers DIR                      # ViT-B, 3 and 8 experts
    python benchmarks/merge_speed.py --peers DIR --large              # ViT-L too: 11 GB of files with 8 experts
    python benchmarks/merge_speed.py --peers DIR --methods ties-global --experts 8 --rounds 5

Every contestant reads the same safetensors files (random weights in the shapes of a timm ViT, in the page cache) and
writes the merged weights, in a process of its own. `floor` reads the same bytes and writes as many, and nothing else:
no merge can be faster without more threads. Contestants take turns in every round, so that what else the machine does
meets them all; ratios are taken within a round, and the table gives medians of rounds. simo_merge and `floor` flush
their output to the disk before they end; the peers do not.

The peers live in virtual environments of their own, DIR/mergekit and DIR/fusion-bench, and are installed there if they
are not. mergekit merges files by itself (what `mergekit-pytorch` runs); its TIES trims every tensor. fusion-bench
merges modules, so its weights are read into modules and saved by safetensors; its TIES trims over all tensors.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
BLOCK = 8 << 20
DENSITY, SCALE = 0.2, 0.3
METHODS = ("weight-average", "task-arithmetic", "ties-per-tensor", "ties-global")
# Which peer computes the same thing.
PEERS = {
    "weight-average": ("mergekit", "fusion-bench"),
    "task-arithmetic": ("mergekit", "fusion-bench"),
    "ties-per-tensor": ("mergekit",),
    "ties-global": ("fusion-bench",),
}
PACKAGES = ("torch==2.13.0", "torchvision==0.28.0")

# -- one contestant, in a process of its own --------------------------------------------------------------------------


def floor(job: Row) -> tuple[float, float]:
    buffer = bytearray(BLOCK)
    began = time.perf_counter()
    for path in [job["base"], *job["experts"]]:
        with Path(path).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    left = Path(job["base"]).stat().st_size
    with Path(job["output"]).open("wb", buffering=0) as file:
        while left > 0:
            left -= file.write(memoryview(buffer)[: min(left, BLOCK)])
        os.fsync(file.fileno())
    return 0.0, time.perf_counter() - began


def simo_merge(job: Row) -> tuple[float, float]:
    began = time.perf_counter()
    from simo_merge.merging import MergeMethod, merge_method
    from simo_merge.merging.files import merge_files

    imported = time.perf_counter() - began
    methods: dict[str, MergeMethod] = {
        "weight-average": merge_method("weight-average"),
        "task-arithmetic": merge_method("task-arithmetic", {"scale": SCALE}),
        "ties-per-tensor": merge_method("ties", {"density": DENSITY, "trim": "per_tensor"}),
        "ties-global": merge_method("ties", {"density": DENSITY, "trim": "global"}),
    }
    began = time.perf_counter()
    merge_files(job["base"], job["experts"], methods[job["method"]], job["output"], overwrite=True)
    return imported, time.perf_counter() - began


def mergekit(job: Row) -> tuple[float, float]:
    began = time.perf_counter()
    import yaml
    from mergekit.scripts.merge_raw_pytorch import main

    imported = time.perf_counter() - began
    options = {"weight-average": ("linear", {}), "task-arithmetic": ("task_arithmetic", {"weight": SCALE})}
    options["ties-per-tensor"] = ("ties", {"density": DENSITY, "weight": 1.0})
    name, parameters = options[job["method"]]
    recipe: Row = {"merge_method": name, "dtype": "float32", "parameters": {"normalize": name != "task_arithmetic"}}
    recipe["models"] = [{"model": path, "parameters": {"weight": 1.0, **parameters}} for path in job["experts"]]
    if name != "linear":
        recipe["base_model"] = job["base"]
        recipe["models"].insert(0, {"model": job["base"]})
    file = Path(job["output"]).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe))
    began = time.perf_counter()
    main.main([str(file), str(Path(job["output"]).with_suffix("")), "--quiet"], standalone_mode=False)
    return imported, time.perf_counter() - began


def fusion_bench(job: Row) -> tuple[float, float]:
    began = time.perf_counter()
    from fusion_bench.method import SimpleAverageAlgorithm, TaskArithmeticAlgorithm, TiesMergingAlgorithm
    from safetensors.torch import load_file, save_file
    from torch import nn

    imported = time.perf_counter() - began

    def module_of(path: str) -> nn.Module:
        root = nn.Module()
        for name, tensor in load_file(path).items():
            *parents, last = name.split(".")
            place = root
            for part in parents:
                if part not in dict(place.named_children()):
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
        return root

    algorithm = {
        "weight-average": lambda: SimpleAverageAlgorithm(),
        "task-arithmetic": lambda: TaskArithmeticAlgorithm(scaling_factor=SCALE),
        "ties-global": lambda: TiesMergingAlgorithm(
            scaling_factor=1.0, threshold=100 * DENSITY, remove_keys=[], merge_func="mean"
        ),
    }[job["method"]]()
    began = time.perf_counter()
    pool = {"_pretrained_": module_of(job["base"])} if job["method"] != "weight-average" else {}
    pool |= {f"expert{i}": module_of(path) for i, path in enumerate(job["experts"])}
    save_file({k: v.contiguous() for k, v in algorithm.run(pool).state_dict().items()}, job["output"])
    return imported, time.perf_counter() - began


CONTESTANTS = {"floor": floor, "simo_merge": simo_merge, "mergekit": mergekit, "fusion-bench": fusion_bench}


def child(name: str, job: Row) -> None:
    """Measure a contestant and say it in the last line of the output."""
    sys.path.insert(0, str(ROOT))
    if name in ("mergekit", "fusion-bench"):  # they import torchvision, whose operators may not load here
        cure = importlib.util.spec_from_file_location("_torchvision", ROOT / "simo_merge" / "_torchvision.py")
        assert cure is not None
        assert cure.loader is not None
        began = time.perf_counter()
        import torch  # noqa: F401

        torch_s = time.perf_counter() - began  # a peer pays for it too
        module = importlib.util.module_from_spec(cure)
        cure.loader.exec_module(module)
        sys.modules["_torchvision"] = module  # what it defines lives as long as it does
    else:
        torch_s = 0.0
    imported, wall = CONTESTANTS[name](job)
    print("\n" + json.dumps({"import_s": imported + torch_s, "wall_s": wall}), flush=True)


# -- the race ---------------------------------------------------------------------------------------------------------


def measure(name: str, python: Path, job: Row) -> Row:
    """Run a contestant: seconds, CPU seconds of the whole process, and its peak of private memory."""
    command = [str(python), str(Path(__file__).resolve()), "--child", name, json.dumps(job)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    peak = 0.0
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        process = subprocess.Popen(command, stdout=said, stderr=complained, env=environment, cwd=job["folder"])
        while True:
            peak = max(peak, private_memory(process.pid))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.004)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            complained.seek(0)
            lines = complained.read().decode(errors="replace").strip().splitlines()
            return {"error": lines[-1] if lines else f"exit status {process.returncode}"}
        said.seek(0)
        found: Row = json.loads(said.read().decode().strip().splitlines()[-1])
    return {**found, "cpu_s": usage.ru_utime + usage.ru_stime, "private_mib": peak}


def private_memory(pid: int) -> float:
    """MiB of memory that is no file's."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def write_inputs(folder: Path, model: str, experts: int) -> tuple[str, list[str]]:
    """Random weights in the names and shapes of a timm ViT, and experts a little away from them."""
    import torch
    from safetensors.torch import save_file

    from simo_merge.weights.architecture import build_vit

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build_vit(model).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    base = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    paths = [folder / f"{model}-{i}.safetensors" for i in range(experts + 1)]
    for i, path in enumerate(paths):
        if not path.exists():
            moved = {n: t + 0.002 * torch.randn(t.shape, generator=generator) for n, t in base.items()} if i else base
            save_file(moved, path, metadata={"format": "pt"})
    return str(paths[0]), [str(path) for path in paths[1:]]


def install(folder: Path, name: str) -> Path:
    """The interpreter of the peer's environment, which is made where it is missing."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        print(f"installing {name} into {folder / name}", flush=True)
        venv.create(folder / name, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES, name], check=True)
    return python


def race(jobs: list[Row], pythons: dict[str, Path], rounds: int, folder: Path) -> list[Row]:
    rows = []
    for job in jobs:
        names = ["floor", "simo_merge", *(peer for peer in PEERS[job["method"]] if peer in pythons)]
        seen: dict[str, list[Row]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                output = folder / f"out-{name}.safetensors"
                output.unlink(missing_ok=True)  # nobody pays for the memory of the file of the round before
                shutil.rmtree(output.with_suffix(""), ignore_errors=True)
                run = job | {"output": str(output), "folder": str(folder)}
                seen[name].append(measure(name, pythons.get(name, Path(sys.executable)), run))
        rows += [summary(job, name, seen) for name in names]
        print(table(rows[-len(names) :]), "", sep="\n", flush=True)
    return rows


def summary(job: Row, name: str, seen: dict[str, list[Row]]) -> Row:
    row = {"model": job["model"], "experts": len(job["experts"]), "method": job["method"], "contestant": name}
    failed = next((run["error"] for run in seen[name] if "error" in run), None)
    if failed is not None:
        return row | {"error": failed}
    for key in ("wall_s", "cpu_s", "private_mib", "import_s"):
        row[key] = statistics.median(run[key] for run in seen[name])
    row["share_of_floor"] = within(seen["floor"], seen[name], "wall_s")
    if not any("error" in run for run in seen["simo_merge"]):
        row["times_simo_merge"] = within(seen[name], seen["simo_merge"], "wall_s")
        row["memory_times_simo_merge"] = within(seen[name], seen["simo_merge"], "private_mib")
    return row


def within(ours: list[Row], others: list[Row], key: str) -> float:
    return statistics.median(a[key] / b[key] if b[key] else 0.0 for a, b in zip(ours, others, strict=True))


def table(rows: list[Row]) -> str:
    head = list(dict.fromkeys(key for row in rows for key in row))
    texts = [
        {k: f"{row[k]:.3g}" if isinstance(row.get(k), float) else str(row.get(k, "")) for k in head} for row in rows
    ]
    lines = [dict(zip(head, head, strict=True)), *texts]
    widths = {key: max(len(line[key]) for line in lines) for key in head}
    return "\n".join("  ".join(line[key].ljust(width) for key, width in widths.items()).rstrip() for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, metavar="DIR", help="their environments; default: simo_merge alone")
    parser.add_argument("--large", action="store_true", help="ViT-L too")
    parser.add_argument("--experts", nargs="+", type=int, default=[3, 8], metavar="N")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of three experts, and no result")
    parser.add_argument("--folder", type=Path, help="for the files; default: a temporary one")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/merge_speed.json"))
    parser.add_argument("--child", nargs=2, metavar=("NAME", "JOB"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], json.loads(options.child[1]))
        return 0

    if options.quick:
        options.experts, options.rounds = [3], 1
        options.output = options.output.with_stem(options.output.stem + "-quick")
    sys.path.insert(0, str(ROOT))
    from simo_merge.results import environment, replace_text

    where = {**environment(), "cores": str(os.cpu_count()), "load before": f"{os.getloadavg()[0]:.1f}"}
    pythons = {name: install(options.peers, name) for name in ("mergekit", "fusion-bench")} if options.peers else {}
    for name, python in pythons.items():
        code = f"from importlib.metadata import version; print(version({name!r}))"
        where[name] = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    models = ["vit_base_patch16_224", *(["vit_large_patch16_224"] if options.large else [])]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        jobs = []
        for model in models:
            base, experts = write_inputs(folder, model, max(options.experts))
            jobs += [
                {"model": model, "method": method, "base": base, "experts": experts[:count]}
                for count in options.experts
                for method in options.methods
            ]
        rows = race(jobs, pythons, options.rounds, folder)
    where["load after"] = f"{os.getloadavg()[0]:.1f}"
    replace_text(options.output, json.dumps({"environment": where, "rows": rows}, indent=2) + "\n")
    print(*(f"{key}: {value}" for key, value in where.items()), f"-> {options.output}", sep="\n")
    return 1 if any("error" in row for row in rows if row["contestant"] in ("floor", "simo_merge")) else 0


if __name__ == "__main__":
    sys.exit(main())
