"""A re-alignment that is killed while its model is written leaves nothing that loads."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from simo_merge.checkpoints import load, save
from simo_merge.errors import SimoError
from simo_merge.models import MergeRecord, MultiTaskModel
from simo_merge.realign import LinearSurgery, realign
from simo_merge.tasks import Depth
from tests.named import RECORD, SEGMENTATION, named_encoder, named_expert
from tests.processes import killed
from tests.tiny import TinyData


def aligned() -> MultiTaskModel:
    pair = {expert.task.name: expert for expert in (named_expert(SEGMENTATION), named_expert(Depth()))}
    decoders, tasks = {n: e.decoder for n, e in pair.items()}, {n: e.task for n, e in pair.items()}
    merged = MultiTaskModel(named_encoder(), decoders, tasks, base=RECORD, merge=MergeRecord("weight-average"))
    return realign(merged, pair, TinyData(6), LinearSurgery(4))


def dies_while_it_writes(folder: str) -> None:
    write = Path.write_text

    def dying(self: Path, text: str, *given: object, **more: object) -> int:
        if self.name == "config.json":
            write(self, text[: len(text) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, text)

    Path.write_text = dying  # type: ignore[method-assign, assignment]  # this process ends here
    save(aligned(), Path(folder) / "aligned")


@pytest.mark.slow
def test_a_killed_re_alignment_leaves_nothing_that_loads(tmp_path: Path) -> None:
    killed(dies_while_it_writes, str(tmp_path))
    assert list(tmp_path.iterdir()), "it was killed before it wrote"
    assert not (tmp_path / "aligned").exists()
    for left in tmp_path.iterdir():
        with pytest.raises(SimoError):
            load(left)
    save(aligned(), tmp_path / "aligned")  # what was left is in nobody's way
    assert load(tmp_path / "aligned").merge is not None
