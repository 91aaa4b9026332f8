"""The cure for a torchvision whose compiled operators do not load."""

from __future__ import annotations

import subprocess
import sys

import torch

from simo_merge import _torchvision


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_torchvision_and_timm_import_after_simo_merge() -> None:
    result = run("import simo_merge, torchvision, timm; print(torchvision.__version__)")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_a_second_call_has_nothing_to_define() -> None:
    # Whatever this machine is made of, the name exists once simo_merge is imported.
    assert hasattr(torch.ops.torchvision, "nms")
    assert _torchvision.define_missing_operators() is None


def test_it_does_nothing_where_the_operators_exist_already() -> None:
    result = run(
        "import torch\n"
        "real = torch.library.Library('torchvision', 'DEF')\n"
        "real.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        f"import runpy; cure = runpy.run_path({_torchvision.__file__!r})\n"
        "assert cure['_LIBRARY'] is None\n"
    )
    assert result.returncode == 0, result.stderr


def test_it_does_nothing_without_torchvision() -> None:
    result = run(
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'torchvision' else found(name, *a)\n"
        f"import runpy; cure = runpy.run_path({_torchvision.__file__!r})\n"
        "assert cure['_LIBRARY'] is None\n"
    )
    assert result.returncode == 0, result.stderr
