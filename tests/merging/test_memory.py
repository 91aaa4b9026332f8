"""Memory used again: never while somebody holds what lies there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from simo_merge.merging.memory import Memory


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    memory = Memory()
    first, other = memory.tensor((10, 30), torch.float32), memory.tensor((20,), torch.float64)
    place, smaller = first.data_ptr(), other.data_ptr()
    assert memory.tensor((10, 30), torch.float32).data_ptr() != place
    del first, other
    assert memory.tensor((30,), torch.float32).data_ptr() == smaller, "the smallest piece that is large enough"
    assert memory.tensor((10, 30), torch.float32).data_ptr() == place


def test_a_view_keeps_what_it_looks_at() -> None:
    memory = Memory()
    whole = memory.tensor((1000,), torch.float32)
    place, part = whole.data_ptr(), whole.fill_(7.0)[990:].view(2, 5)
    array = whole[:3].numpy()
    del whole
    for kept in (part, array):
        assert memory.tensor((1000,), torch.float32).fill_(1.0).data_ptr() != place
        assert kept.min() == 7.0
    del part, array, kept
    found = [memory.tensor((1000,), torch.float32) for _ in range(3)]
    assert place in {tensor.data_ptr() for tensor in found}


def test_shapes_and_types_are_those_asked_for() -> None:
    memory = Memory()
    for shape in ((), (0,), (3, 0, 2), (2, 3)):
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int8):
            tensor = memory.tensor(shape, dtype)
            assert (tuple(tensor.shape), tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)


def test_threads_never_share_memory_that_is_held() -> None:
    memory = Memory()

    def work(number: int) -> bool:
        whole = True
        for size in range(1, 200):
            tensor = memory.tensor((size,), torch.float32).fill_(float(number))
            whole &= bool((tensor * 1.0 == number).all())
        return whole

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(16)))
