"""Augmentation: the recipes, and that chance comes from the generator alone and labels from valid pixels alone."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import albumentations
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simo_merge.data import DERIVED, ROOMS_TASKS, Augmentation, Sample, rooms
from simo_merge.data.transforms import RECIPES, enlarge_and_crop, flip, zoom
from simo_merge.errors import SimoError
from simo_merge.tasks import Regression, Task
from tests.data.samples import SIZE, TASKS, a_sample, assert_equal

SEEDS = st.integers(0, 1000)
NAMES = st.sampled_from(sorted(RECIPES))


def a_generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- recipes ------------------------------------------------------------------------------------------------------


def drawn(rng: np.random.Generator) -> tuple[float, float, float, bool, int]:
    """What chance decides, in this order: scale, place from the top and from the left, mirrored, seed of colours."""
    scale, top, left = float(rng.choice([1.0, 1.2, 1.5])), rng.random(), rng.random()
    return scale, top, left, rng.random() < 0.5, int(rng.integers(2**31))


def jittered(sample: Sample, seed: int) -> Sample:
    """Colours as albumentations changes them in a `Compose` of its own."""
    jitter = albumentations.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (-0.02, 0.02), p=1.0)
    whole = albumentations.Compose([jitter])
    whole.set_random_seed(seed)
    pixels = whole(image=sample.image.permute(1, 2, 0).contiguous().numpy())["image"]
    return replace(sample, image=torch.from_numpy(pixels).permute(2, 0, 1).clamp(0, 1))


@given(SEEDS)
def test_the_default_is_a_zoom_a_mirror_and_a_jitter(seed: int) -> None:
    """Cached experts are named after it: these draws, in this order, must stay."""
    sample = a_sample(seed)
    scale, top, left, mirrored, colours = drawn(a_generator(seed))
    expected = zoom(sample, TASKS, scale, top, left)
    expected = jittered(flip(expected, TASKS) if mirrored else expected, colours)
    assert_equal(Augmentation(TASKS)(sample, a_generator(seed)), expected)
    assert_equal(Augmentation.named("default", TASKS)(sample, a_generator(seed)), expected)


@given(SEEDS)
def test_mtan_zooms_and_mirrors(seed: int) -> None:
    sample = a_sample(seed)
    scale, top, left, mirrored, _ = drawn(a_generator(seed))
    expected = zoom(sample, TASKS, scale, top, left)
    expected = flip(expected, TASKS) if mirrored else expected
    assert_equal(Augmentation.named("mtan", TASKS)(sample, a_generator(seed)), expected)


@given(SEEDS, st.sampled_from([None, SIZE, (20, 30)]))
def test_simo_enlarges_crops_and_mirrors(seed: int, crop: tuple[int, int] | None) -> None:
    sample = a_sample(seed)
    scale, top, left, mirrored, _ = drawn(a_generator(seed))
    expected = enlarge_and_crop(sample, TASKS, scale, crop or SIZE, top, left)
    expected = flip(expected, TASKS) if mirrored else expected
    assert_equal(Augmentation.named("simo", TASKS, crop)(sample, a_generator(seed)), expected)


def test_simo_crops_nyuv2_as_published() -> None:
    sample = Sample(torch.rand(3, 288, 384), {"z": torch.rand(1, 288, 384)}, {"z": torch.ones(288, 384).bool()})
    simo = Augmentation.named("simo", TASKS, crop=(280, 378))
    sizes = {simo(sample, a_generator(seed)).size for seed in range(6)}
    assert sizes == {(280, 378)}


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(SimoError, match="unknown augmentation 'cutmix'; known: default, mtan, simo"):
        Augmentation.named("cutmix", TASKS)


@pytest.mark.parametrize("name", ["default", "mtan"])
def test_a_recipe_that_keeps_the_size_takes_no_crop(name: str) -> None:
    with pytest.raises(SimoError, match="a crop needs enlarge_first=True"):
        Augmentation.named(name, TASKS, crop=(8, 8))


@pytest.mark.parametrize(
    "wrong",
    [{"flip": 1.1}, {"scales": ()}, {"scales": (0.5,)}, {"jitter": 1.0}, {"crop": (0, 4), "enlarge_first": True}],
)
def test_options_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SimoError, match="expected"):
        Augmentation(TASKS, **wrong)  # type: ignore[arg-type]


# -- what must hold for all of them -------------------------------------------------------------------------------


@given(NAMES, SEEDS)
def test_what_lies_under_an_unset_mask_reaches_no_valid_pixel(name: str, seed: int) -> None:
    clean, soiled = a_sample(seed), a_sample(seed)
    for task, target in soiled.targets.items():
        rubbish = 10**9 if task == "classes" else [float("nan"), float("inf"), 1e30][seed % 3]
        target[..., ~soiled.masks[task]] = rubbish
    augmentation = Augmentation.named(name, TASKS)
    expected, found = augmentation(clean, a_generator(seed)), augmentation(soiled, a_generator(seed))
    for task, mask in found.masks.items():
        assert torch.equal(mask, expected.masks[task])
        assert torch.equal(found.targets[task][..., mask], expected.targets[task][..., mask]), task


@given(NAMES, SEEDS)
def test_normals_stay_unit_depth_positive_and_classes_classes(name: str, seed: int) -> None:
    found = Augmentation.named(name, TASKS)(a_sample(seed), a_generator(seed))
    assert torch.allclose(found.targets["n"].norm(dim=0), torch.ones(SIZE), atol=1e-5)
    assert found.targets["z"].min() >= 1 / 1.6
    assert torch.allclose(found.targets["z"] * found.targets["d"], torch.tensor(2.0), rtol=1e-6)
    assert set(found.targets["classes"].unique().tolist()) <= {0, 1, 2}
    assert 0 <= found.image.min() <= found.image.max() <= 1
    assert found.image.dtype == torch.float32


@given(NAMES, SEEDS)
def test_the_generator_alone_decides(name: str, seed: int) -> None:
    sample = a_sample(1)
    first, second = Augmentation.named(name, TASKS), Augmentation.named(name, TASKS)
    second(a_sample(2), a_generator(9))  # an earlier call must not matter
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what others draw must not matter
    assert_equal(first(sample, a_generator(seed)), second(sample, a_generator(seed)))


def test_the_generator_decides_on_derived_targets_too() -> None:
    dataset = rooms("val", [*ROOMS_TASKS, "keypoints"])
    sample = dataset[1]
    first, second = Augmentation(dataset.tasks), Augmentation(dataset.tasks)
    assert_equal(first(sample, a_generator(5)), second(sample, a_generator(5)))
    assert not torch.equal(first(sample, a_generator(6)).image, first(sample, a_generator(5)).image)


@pytest.mark.parametrize("name", RECIPES)
def test_an_augmentation_leaves_its_input_alone(name: str) -> None:
    sample, before = a_sample(), a_sample()
    for seed in range(8):
        Augmentation.named(name, TASKS)(sample, a_generator(seed))
    assert_equal(sample, before)


def test_threads_can_share_an_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, augmentation = a_sample(), Augmentation(TASKS)
    alone = [augmentation(sample, a_generator(seed)).image for seed in range(2)]
    both, draw = threading.Barrier(2, timeout=20), albumentations.ColorJitter.get_params

    def at_once(jitter: albumentations.ColorJitter) -> dict[str, Any]:
        both.wait()  # the worst moment: both have been seeded, neither has drawn
        return draw(jitter)

    monkeypatch.setattr(albumentations.ColorJitter, "get_params", at_once)
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda seed: augmentation(sample, a_generator(seed)).image, range(2)))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_an_augmentation_keeps_nothing_of_a_sample(name: str) -> None:
    """So worker processes can have copies."""
    augmentation = Augmentation.named(name, TASKS)
    untouched = copy.deepcopy(augmentation)
    augmentation(a_sample(3), a_generator(3))
    sample = a_sample(4)
    assert_equal(augmentation(sample, a_generator(4)), untouched(sample, a_generator(4)))


# -- colours and derived targets ----------------------------------------------------------------------------------


def test_jitter_changes_colours_only_and_keeps_them_in_range() -> None:
    sample = a_sample()
    changed = Augmentation(TASKS, flip=0, scales=(1,), jitter=0.5)(sample, a_generator(1))
    assert not torch.equal(changed.image, sample.image)
    assert 0 <= changed.image.min() <= changed.image.max() <= 1
    for name in sample.targets:
        assert torch.equal(changed.targets[name], sample.targets[name])


def test_targets_derived_from_the_image_belong_to_the_augmented_image() -> None:
    dataset = rooms("val", ["reconstruction", "texture_edges"])
    augmented = Augmentation(dataset.tasks, flip=1, scales=(1.5,))(dataset[0], a_generator())
    assert torch.equal(augmented.targets["reconstruction"], augmented.image)
    again = DERIVED["texture_edges"].compute(augmented.image, {})[0]
    assert torch.equal(augmented.targets["texture_edges"], again)


def test_a_task_of_the_same_name_from_files_is_not_computed_again() -> None:
    tasks: dict[str, Task] = {"keypoints": Regression(name="keypoints", unit="response")}
    mask = torch.ones(SIZE, dtype=torch.bool)
    sample = Sample(torch.rand(3, *SIZE), {"keypoints": torch.full((1, *SIZE), 7.0)}, {"keypoints": mask})
    augmented = Augmentation(tasks)(sample, a_generator())
    assert torch.equal(augmented.targets["keypoints"], sample.targets["keypoints"])
