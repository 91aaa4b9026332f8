"""Devices and precisions: what is there is used, what is not is refused by name."""

from __future__ import annotations

import pytest
import torch

from simo_merge.device import autocast, peak_memory, resolve_device, resolve_precision
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


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False, "avx512_f": True, "avx2": True}, "float32"),
        ({}, "float32"),
    ],
)
def test_auto_is_bfloat16_only_where_the_cpu_computes_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_precision("auto", torch.device("cpu")) == expected
    with autocast(torch.device("cpu"), "auto"):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == getattr(torch, expected)


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float32")])
def test_auto_is_bfloat16_on_gpus_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", torch.device("cuda:0")) == expected


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_that_is_named_is_taken_whatever_the_device(precision: str) -> None:
    assert resolve_precision(precision, torch.device("cpu")) == precision


def test_an_unknown_precision_lists_the_known_ones() -> None:
    with pytest.raises(SimoError, match="unknown precision 'float16'; known: auto, float32, bfloat16"):
        autocast(torch.device("cpu"), "float16")


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(16 << 20)  # 64 MiB, written to
    after = peak_memory(torch.device("cpu"))
    del held
    assert 10 << 20 < before <= after < 1 << 40
    assert peak_memory(torch.device("cpu")) >= after
