"""Training batches depend on the seed and the step, and on nothing that happened before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simo_merge.data import Augmentation, Batch, Sample
from simo_merge.data.transforms import RECIPES
from simo_merge.training.batches import schedule, training_batches
from tests.tiny import DEPTH, NORMALS, TinyData

DATA = TinyData(5, (DEPTH, NORMALS))
AUGMENTATION = Augmentation(DATA.tasks)


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        a.keys == b.keys
        and torch.equal(a.images, b.images)
        and all(torch.equal(a.targets[name], b.targets[name]) for name in a.targets)
        and all(torch.equal(a.masks[name], b.masks[name]) for name in a.masks)
        for a, b in zip(ours, theirs, strict=True)
    )


@given(
    images=st.integers(1, 12),
    batch_size=st.integers(1, 15),
    steps=st.integers(1, 10),
    seed=st.integers(0, 2**32),
)
def test_every_epoch_shows_every_image_once_and_batches_run_on_across_epochs(
    images: int, batch_size: int, steps: int, seed: int
) -> None:
    planned = schedule(images, batch_size, steps, seed)
    assert [len(batch) for batch in planned] == [batch_size] * steps
    pairs = [pair for batch in planned for pair in batch]
    assert [epoch for epoch, _ in pairs] == [i // images for i in range(len(pairs))]
    for epoch in range(len(pairs) // images):
        shown = [index for _, index in pairs[epoch * images : (epoch + 1) * images]]
        assert sorted(shown) == list(range(images))


@given(steps=st.integers(1, 20), seed=st.integers(0, 1000))
def test_a_longer_run_begins_as_a_shorter_one(steps: int, seed: int) -> None:
    assert schedule(7, 3, 20, seed)[:steps] == schedule(7, 3, steps, seed)


def test_images_come_in_another_order_each_epoch_and_with_another_seed() -> None:
    epochs = schedule(20, 20, 2, seed=0)
    assert [i for _, i in epochs[0]] != [i for _, i in epochs[1]]
    assert schedule(20, 20, 1, seed=1) != epochs[:1]


@pytest.mark.parametrize("augmentation", [None, AUGMENTATION])
@pytest.mark.parametrize("start", [0, 1, 4, 6])
def test_a_run_that_goes_on_sees_the_batches_that_it_would_have_seen(
    augmentation: Augmentation | None, start: int
) -> None:
    whole = list(training_batches(DATA, augmentation, 3, 6, seed=4))
    torch.manual_seed(99)  # whatever was drawn in between
    rest = list(training_batches(DATA, augmentation, 3, 6, seed=4, start=start))
    assert same(rest, whole[start:])


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_give_the_same_batches(workers: int, name: str) -> None:
    augmentation = Augmentation.named(name, DATA.tasks)
    alone = list(training_batches(DATA, augmentation, 2, 3, seed=0))
    assert same(list(training_batches(DATA, augmentation, 2, 3, seed=0, workers=workers)), alone)


class Broken(TinyData):
    """Data of which one sample makes an error that is no fault of the user."""

    def __getitem__(self, index: int) -> Sample:
        return super().__getitem__(index) if index != 1 else Sample(torch.rand(4))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_augmentation_names_the_sample(workers: int) -> None:
    data = Broken(3, (DEPTH,))
    with pytest.raises(RuntimeError, match=r"tiny .val., sample 'val-0-1': IndexError: "):
        list(training_batches(data, Augmentation(data.tasks), 3, 1, seed=0, workers=workers))


def test_an_image_is_augmented_differently_in_every_epoch() -> None:
    one = TinyData(1, (DEPTH,))
    first, second = training_batches(one, Augmentation(one.tasks), 1, 2, seed=0)
    assert not torch.equal(first.images, second.images)


def test_another_seed_augments_differently() -> None:
    one = TinyData(1, (DEPTH,))
    images = [next(training_batches(one, Augmentation(one.tasks), 1, 1, seed)).images for seed in (0, 1)]
    assert not torch.equal(*images)


def test_without_augmentation_images_are_as_they_are() -> None:
    (batch,) = training_batches(DATA, None, 5, 1, seed=0)
    for image, key in zip(batch.images, batch.keys, strict=True):
        assert torch.equal(image, DATA.samples[DATA.keys.index(key)].image)
