from __future__ import annotations

import pytest
import torch

from simo_merge.data import Sample, collate
from simo_merge.errors import SimoError


def a_sample(key: str = "a", height: int = 4) -> Sample:
    return Sample(
        image=torch.rand(3, height, 6),
        targets={"depth": torch.rand(1, height, 6)},
        masks={"depth": torch.ones(height, 6, dtype=torch.bool)},
        key=key,
    )


def test_a_batch_stacks_images_targets_and_masks_in_order() -> None:
    first, second = a_sample("a"), a_sample("b")
    batch = collate([first, second])
    assert batch.keys == ("a", "b")
    assert len(batch) == 2
    assert torch.equal(batch.images[1], second.image)
    assert batch.targets["depth"].shape == (2, 1, 4, 6)
    assert batch.masks["depth"].shape == (2, 4, 6)


def test_a_batch_moves_to_a_device_whole() -> None:
    batch = collate([a_sample()])
    assert batch.to("cpu") is batch
    moved = batch.to("meta")
    assert {moved.images.device.type, moved.masks["depth"].device.type} == {"meta"}


def test_images_of_two_sizes_are_refused_by_name_and_with_the_mend() -> None:
    with pytest.raises(SimoError, match=r"'a' is 4x6 and 'b' is 5x6.*size=\(H, W\)"):
        collate([a_sample("a"), a_sample("b", height=5)])


def test_samples_with_other_tasks_are_refused() -> None:
    with pytest.raises(SimoError, match=r"'b' has \[\]"):
        collate([a_sample("a"), Sample(image=torch.rand(3, 4, 6), key="b")])


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(SimoError, match="no samples"):
        collate([])
