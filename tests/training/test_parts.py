"""A batch in parts: no row twice, and each part counts for the labels that it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from simo_merge.data import collate
from simo_merge.errors import SimoError
from simo_merge.training import parts
from simo_merge.training.parts import Cut
from simo_merge.training.shared_layers import SharedLayers
from tests.tiny import DEPTH, SEGMENTATION, TinyData

Processes = Callable[[int, int], None]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    """Makes this process number `rank` of `count`."""

    def of(rank: int, count: int) -> None:
        monkeypatch.setattr(parts, "world_size", lambda: count)
        monkeypatch.setattr(parts, "rank", lambda: rank)

    return of


@pytest.mark.parametrize(("accumulate", "count"), [(1, 1), (1, 2), (2, 2), (3, 2), (4, 1), (2, 3), (12, 1)])
def test_all_processes_together_have_every_row_once_and_micro_batches_are_the_same_images(
    processes: Processes, accumulate: int, count: int
) -> None:
    seen: list[list[int]] = []
    for rank in range(count):
        processes(rank, count)
        rows = Cut(12, accumulate).rows
        size = len(rows) // accumulate
        seen.append(rows)
        for micro in range(accumulate):
            own = rows[micro * size : (micro + 1) * size]
            assert own == list(range(own[0], own[0] + size))
            assert {row // (12 // accumulate) for row in own} == {micro}
    assert sorted(row for rows in seen for row in rows) == list(range(12))


def test_a_batch_that_the_processes_cannot_share_is_refused(processes: Processes) -> None:
    processes(0, 3)
    with pytest.raises(
        SimoError, match=r"batch_size is 8, .* over all processes; .* 1 micro-.* x 3 .* = 3: take 9, or"
    ):
        Cut(8)
    with pytest.raises(SimoError, match=r"= 6: take 12, or"):
        Cut(9, 2)


def test_losses_of_parts_add_up_to_the_loss_of_the_batch_however_labels_are_spread() -> None:
    data = TinyData(4, (SEGMENTATION, DEPTH))
    data.samples[0].masks["depth"][:] = False
    data.samples[1].masks["depth"][:20] = False
    data.samples[2].masks["segmentation"][:] = False
    data.samples[3].masks["segmentation"][:] = False
    batch = collate(data.samples)
    names = ["segmentation", "depth"]
    predictions = {"segmentation": torch.randn(4, 3, 32, 48), "depth": torch.rand(4, 1, 32, 48)}
    found = torch.zeros(2, dtype=torch.float64)
    for part in Cut(4, 2).parts(batch, names):
        rows = slice(part.first, part.first + 2)
        assert part.batch.keys == batch.keys[rows]
        assert part.images == 0.5
        for index, name in enumerate(names):
            loss = data.tasks[name].loss(predictions[name][rows], part.batch.targets[name], part.batch.masks[name])
            found[index] += part.share[index] * loss
    whole = [data.tasks[name].loss(predictions[name], batch.targets[name], batch.masks[name]) for name in names]
    torch.testing.assert_close(found, torch.stack(whole).double(), rtol=1e-6, atol=0)


def test_parts_of_a_batch_without_a_label_count_for_nothing() -> None:
    batch = collate(TinyData(4, (DEPTH,)).samples)
    batch = replace(batch, masks={"depth": torch.zeros_like(batch.masks["depth"])})
    assert [part.share.tolist() for part in Cut(4, 4).parts(batch, ["depth"])] == [[0.0]] * 4


# -- dropout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dropout", [nn.Dropout(0.3), nn.Dropout2d(0.5), nn.Dropout(0.2, inplace=True)])
def test_an_image_s_dropout_does_not_depend_on_how_the_batch_was_cut(
    dropout: nn.Module, layout: torch.memory_format
) -> None:
    images = torch.randn(6, 5, 4, 3).to(memory_format=layout)
    torch.manual_seed(3)
    whole = dropout(images.clone(memory_format=torch.preserve_format))
    layers = SharedLayers()
    with layers.installed(dropout):
        for first in (0, 2, 4):
            torch.manual_seed(3)
            with layers.rows(first, 6):
                part = images[first : first + 2].clone(memory_format=torch.preserve_format)
                assert torch.equal(dropout(part), whole[first : first + 2])
    assert "forward" not in vars(dropout)


def test_dropout_in_evaluation_and_of_rows_that_are_no_images_is_torch_s_own() -> None:
    dropout, layers, x = nn.Dropout(0.3), SharedLayers(), torch.randn(9, 4)
    torch.manual_seed(0)
    plain = dropout(x)
    with layers.installed(dropout), layers.rows(2, 6):
        torch.manual_seed(0)
        assert torch.equal(dropout(x), plain)
        dropout.eval()
        assert torch.equal(dropout(x[:2]), x[:2])
