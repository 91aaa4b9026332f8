"""Several processes at one task: sums with the same bits everywhere, errors that reach all, and nothing when alone."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simo_merge import distributed
from simo_merge.errors import SimoError
from simo_merge.progress import progress
from tests.processes import launched, share_work

# -- alone ------------------------------------------------------------------------------------------------------


def test_alone_everything_is_what_was_given() -> None:
    values = torch.arange(3.0, requires_grad=True)
    assert (distributed.world_size(), distributed.rank(), distributed.local_rank()) == (1, 0, 0)
    assert distributed.is_main()
    assert distributed.summed(values) is values
    assert distributed.total_of_parts(values) is values
    assert distributed.once(values) is values
    assert distributed.gather("a") == ["a"]
    assert distributed.together(lambda: 3) == [3]
    assert distributed.by_main(lambda: 4) == 4
    distributed.add_up([values])
    distributed.refuse_differences("it", 1)
    assert values.tolist() == [0, 1, 2]
    assert not torch.distributed.is_initialized()


def test_a_launcher_that_gives_no_rank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SimoError, match=r"WORLD_SIZE is 4, but RANK is not set; start with torchrun"):
        distributed.world_size()
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(SimoError, match="WORLD_SIZE is 'many', expected a number"):
        distributed.world_size()


def test_without_accelerate_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in launched(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(SimoError, match=r'2 processes need accelerate; .* "simo_merge\[distributed\]"'):
        distributed.gather(1)


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_are_consecutive_differ_by_one_and_leave_nothing_out(count: int, processes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: processes)
        shares = []
        for number in range(processes):
            patch.setattr(distributed, "rank", lambda number=number: number)
            shares.append(list(distributed.share(count)))
    assert [item for each in shares for item in each] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_progress_is_told_by_one_process(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("simo_merge.progress._LOG_EVERY", 0.0)
    caplog.set_level("INFO")
    assert list(progress([1, 2, 3], 3, "work")) == [1, 2, 3]
    assert caplog.messages
    caplog.clear()
    monkeypatch.setattr("simo_merge.progress.is_main", lambda: False)
    assert list(progress([1, 2, 3], 3, "work")) == [1, 2, 3]
    assert not caplog.messages


# -- two processes ----------------------------------------------------------------------------------------------


def numbers(rank: int) -> list[Tensor]:
    made = torch.Generator().manual_seed(rank)
    shapes = [((3, 5), torch.float32), ((7,), torch.float64), ((), torch.float64), ((2, 2), torch.float32)]
    found = [torch.randn(shape, generator=made, dtype=kind) for shape, kind in shapes]
    return [*found[:3], found[3].T, torch.tensor([rank + 1])]


def everything(folder: Path) -> dict[str, Any]:
    """All that processes do together."""
    me = distributed.rank()
    found: dict[str, Any] = {"rank": me, "main": distributed.is_main()}
    mine = numbers(me)
    distributed._BUCKET = 16  # several messages
    distributed.add_up(mine)
    found["sums"] = mine
    found["gathered"] = distributed.gather({"from": me})
    x = torch.tensor([1.0 + me, 2.0], requires_grad=True)
    ((1 + me) * distributed.summed(x).square()).sum().backward()
    found["gradient through the sum"] = x.grad
    y = torch.tensor(3.0 + me, requires_grad=True)
    total = distributed.total_of_parts(y.square())
    total.backward()
    found["total"], found["gradient of the part"] = float(total.detach()), float(y.grad)
    whole = torch.full((2,), 5.0)
    part = distributed.once(whole).clone()
    distributed.add_up([part])
    found["once"] = part.tolist()
    found["by main"] = distributed.by_main(lambda: (folder / "made").write_text(str(me)))
    for name, failing in (("together", 1), ("by main fails", 0)):
        try:
            if name == "together":
                distributed.together(partial(refuse, failing))
            else:
                distributed.by_main(partial(refuse, failing))
        except SimoError as error:
            found[name] = str(error)
    try:
        distributed.refuse_differences("the number", me // 1)
    except SimoError as error:
        found["differences"] = str(error)
    return found


def refuse(number: int) -> None:
    if distributed.rank() == number:
        raise SimoError(f"process {number} has had enough")


def test_two_processes_sum_and_tell_each_other(tmp_path: Path) -> None:
    first, second = share_work(everything, tmp_path)
    assert [each["rank"] for each in (first, second)] == [0, 1]
    assert [each["main"] for each in (first, second)] == [True, False]
    for a, b, x, y in zip(first["sums"], second["sums"], numbers(0), numbers(1), strict=True):
        assert torch.equal(a, b)
        assert a.dtype == x.dtype
        torch.testing.assert_close(a, x + y, rtol=1e-6 if a.dtype == torch.float32 else 1e-15, atol=0)
    for each, own in ((first, 0), (second, 1)):
        assert each["gathered"] == [{"from": 0}, {"from": 1}]
        # L = (1 + 2) Σ s², s = x_0 + x_1: every process's loss is made of the sum
        assert each["gradient through the sum"].tolist() == [3 * 2 * 3.0, 3 * 2 * 4.0]
        assert (each["total"], each["gradient of the part"]) == (25.0, 2 * (3.0 + own))
        assert each["once"] == [5.0, 5.0]
        assert each["by main"] == 1
        assert each["together"] == "process 1 has had enough"
        assert each["by main fails"] == "process 0 has had enough"
        assert each["differences"].startswith("the number of process 1 is not that of process 0; start all of them")
    assert (tmp_path / "made").read_text() == "0"
