"""Devices and precisions: what is there is used, what is not is refused by name."""

from __future__ import annotations

import pytest
import torch

from simo_merge.device import autocast, resolve_device
from simo_merge.errors import SimoError


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_without_a_name_the_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    assert resolve_device() == torch.device("cuda")
    gpus(monkeypatch, 0)
    assert resolve_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["cpu", torch.device("cpu")])
def test_a_named_device_is_taken(name: str | torch.device) -> None:
    assert resolve_device(name) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_a_gpu_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    gpus(monkeypatch, 2)
    assert resolve_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_without_any_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    gpus(monkeypatch, 0)
    with pytest.raises(SimoError, match=f"device '{name}' was asked for, but this torch sees no CUDA GPU; use cpu"):
        resolve_device(name)


def test_a_gpu_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    with pytest.raises(SimoError, match="device 'cuda:2' was asked for, but this torch sees GPUs 0 to 1"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:first"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(SimoError, match=r"unknown device .* expected cpu, cuda or cuda:N"):
        resolve_device(name)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_precision_is_what_matrices_are_multiplied_in(precision: str, dtype: torch.dtype) -> None:
    with autocast(torch.device("cpu"), precision):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == dtype


def test_float32_holds_inside_another_autocast() -> None:
    with autocast(torch.device("cpu"), "bfloat16"), autocast(torch.device("cpu"), "float32"):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.float32


def test_an_unknown_precision_lists_the_known_ones() -> None:
    with pytest.raises(SimoError, match="unknown precision 'float16'; known: float32, bfloat16"):
        autocast(torch.device("cpu"), "float16")
