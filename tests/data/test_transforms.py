"""Augmentation: what a mirror and a zoom do to labels, and that chance comes from the generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simo_merge.data import DERIVED, ROOMS_TASKS, Augmentation, Sample, rooms
from simo_merge.data.transforms import flip, zoom
from simo_merge.errors import SimoError
from simo_merge.tasks import Depth, Normals, Regression, Segmentation, Task

TASKS: dict[str, Task] = {
    "classes": Segmentation(name="classes", classes=("a", "b", "c")),
    "z": Depth(name="z"),
    "n": Normals(name="n"),
    "map": Regression(name="map", channels=2),
}
SIZE = (24, 36)
FOCAL = 30.0


def a_sample(seed: int = 0) -> Sample:
    made = torch.Generator().manual_seed(seed)
    normals = torch.randn(3, *SIZE, generator=made)
    targets = {
        "classes": torch.randint(0, 3, SIZE, generator=made),
        "z": torch.rand(1, *SIZE, generator=made) + 1,
        "n": normals / normals.norm(dim=0),
        "map": torch.rand(2, *SIZE, generator=made),
    }
    masks = {name: torch.rand(SIZE, generator=made) > 0.3 for name in targets}
    return Sample(torch.rand(3, *SIZE, generator=made), targets, masks, "a")


def assert_equal(one: Sample, other: Sample) -> None:
    assert torch.equal(one.image, other.image)
    for name in one.targets:
        assert torch.equal(one.targets[name], other.targets[name]), name
        assert torch.equal(one.masks[name], other.masks[name]), name


def a_wall(normal: tuple[float, float, float]) -> Sample:
    """A plane with this normal (right, down, viewer), 3 m away, seen by a camera of focal length FOCAL."""
    v, u = np.mgrid[0 : SIZE[0], 0 : SIZE[1]] + 0.5
    n = np.asarray(normal) / np.linalg.norm(normal)
    ray = np.stack([(u - SIZE[1] / 2) / FOCAL, (v - SIZE[0] / 2) / FOCAL, np.ones(SIZE)])
    depth = -3 * n[2] / (ray[0] * n[0] + ray[1] * n[1] - ray[2] * n[2])
    everywhere = torch.ones(SIZE, dtype=torch.bool)
    normals = torch.from_numpy(n).float()[:, None, None].expand(3, *SIZE).clone()
    targets = {"z": torch.from_numpy(depth).float()[None], "n": normals}
    return Sample(torch.rand(3, *SIZE), targets, {"z": everywhere, "n": everywhere})


def fitted_normal(z: Tensor, focal: float, centre: tuple[float, float]) -> np.ndarray:
    """The normal of the plane that fits the points of a depth map best, towards the camera."""
    v, u = np.mgrid[0 : SIZE[0], 0 : SIZE[1]] + 0.5
    depth = z[0].double().numpy()
    points = np.stack([depth * (u - centre[0]) / focal, depth * (v - centre[1]) / focal, depth]).reshape(3, -1)
    normal = np.linalg.svd(points - points.mean(1, keepdims=True), full_matrices=False)[0][:, 2]
    normal = normal * -np.sign(normal @ points.mean(1))
    return normal * np.array([1, 1, -1])


NORMALS = st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.just(1.0))


@given(st.integers(0, 1000))
def test_mirroring_twice_changes_nothing(seed: int) -> None:
    sample = a_sample(seed)
    assert_equal(flip(flip(sample, TASKS), TASKS), sample)


def test_mirroring_twice_changes_nothing_on_all_tasks_of_the_rooms() -> None:
    dataset = rooms("val", [*ROOMS_TASKS, *DERIVED])
    mirror = Augmentation(dataset.tasks, flip=1, scales=(1,), jitter=0)
    sample, rng = dataset[0], np.random.default_rng(0)
    once = mirror(sample, rng)
    assert_equal(mirror(once, rng), sample)
    # What is derived follows the mirror, whether it moved along or was computed again.
    for name in DERIVED:
        assert torch.allclose(once.targets[name], sample.targets[name].flip(-1), atol=1e-6), name


def test_a_mirror_moves_pixels_and_masks_and_negates_only_the_x_of_normals() -> None:
    sample = a_sample()
    mirrored = flip(sample, TASKS)
    assert torch.equal(mirrored.image[..., 0], sample.image[..., -1])
    assert torch.equal(mirrored.targets["n"][0, :, 0], -sample.targets["n"][0, :, -1])
    assert torch.equal(mirrored.targets["n"][1:, :, 0], sample.targets["n"][1:, :, -1])
    assert torch.equal(mirrored.targets["map"][..., 0], sample.targets["map"][..., -1])
    assert torch.equal(mirrored.masks["z"][:, 0], sample.masks["z"][:, -1])


@given(NORMALS)
def test_normals_of_the_mirrored_depth_are_the_mirrored_normals(normal: tuple[float, float, float]) -> None:
    mirrored = flip(a_wall(normal), TASKS)
    found = fitted_normal(mirrored.targets["z"], FOCAL, (SIZE[1] / 2, SIZE[0] / 2))
    assert np.allclose(found, mirrored.targets["n"][:, 0, 0].numpy(), atol=1e-4)


@given(NORMALS, st.sampled_from([1.2, 1.5, 2.0]), st.floats(0, 1), st.floats(0, 1))
def test_normals_of_the_zoomed_depth_are_those_of_the_zoomed_camera(
    normal: tuple[float, float, float], scale: float, top: float, left: float
) -> None:
    sample = a_wall(normal)
    zoomed = zoom(sample, TASKS, scale, top, left)
    rows, columns = round(SIZE[0] / scale), round(SIZE[1] / scale)
    y, x = round(top * (SIZE[0] - rows)), round(left * (SIZE[1] - columns))
    centre = ((SIZE[1] / 2 - x) * scale, (SIZE[0] / 2 - y) * scale)
    found = fitted_normal(zoomed.targets["z"], FOCAL * scale, centre)
    # The nearest pixel is up to half a pixel away, so the enlarged plane has small steps.
    assert np.degrees(np.arccos(min(1.0, float(found @ zoomed.targets["n"][:, 0, 0].double().numpy())))) < 1.0
    assert torch.equal(zoomed.targets["n"], sample.targets["n"])


@given(st.integers(0, 1000), st.sampled_from([1.2, 1.5, 2.0, 3.0]))
def test_a_zoom_invents_no_label_and_masks_stay_with_their_labels(seed: int, scale: float) -> None:
    sample = a_sample(seed)
    valid = {name: torch.where(sample.masks[name], 1.0, -1.0) for name in sample.targets}
    # Write each mask into its label: after the zoom they must still say the same.
    targets = sample.targets | {"map": valid["map"].expand(2, *SIZE), "z": valid["z"][None] * scale}
    zoomed = zoom(Sample(sample.image, targets, sample.masks), TASKS, scale, 0.3, 0.8)
    assert torch.equal(zoomed.targets["map"][0] > 0, zoomed.masks["map"])
    assert torch.equal(zoomed.targets["z"][0] > 0, zoomed.masks["z"])
    assert torch.allclose(zoomed.targets["z"].abs(), torch.ones(1, *SIZE))  # divided by the scale
    assert zoomed.targets["classes"].dtype == torch.int64
    assert set(zoomed.targets["classes"].unique().tolist()) <= {0, 1, 2}
    assert torch.allclose(zoomed.targets["n"].norm(dim=0), torch.ones(SIZE), atol=1e-5)


def test_a_zoomed_label_lies_where_its_pixel_lies() -> None:
    sample = a_sample()
    pattern = torch.zeros(SIZE)
    pattern[:, 18:] = 1
    targets = {"map": pattern.expand(2, *SIZE)}
    zoomed = zoom(Sample(pattern.expand(3, *SIZE), targets, {"map": sample.masks["map"]}), TASKS, 2.0, 0.5, 0.2)
    assert torch.equal(zoomed.targets["map"][0], (zoomed.image[0] > 0.5).float())


def test_a_zoom_of_1_changes_nothing() -> None:
    sample = a_sample()
    assert_equal(zoom(sample, TASKS, 1.0), sample)


def test_the_generator_alone_decides() -> None:
    dataset = rooms("val", [*ROOMS_TASKS, "keypoints"])
    sample = dataset[1]
    first, second = Augmentation(dataset.tasks), Augmentation(dataset.tasks)
    second(dataset[0], np.random.default_rng(9))  # an earlier call must not matter
    assert_equal(first(sample, np.random.default_rng(5)), second(sample, np.random.default_rng(5)))
    other = first(sample, np.random.default_rng(6))
    assert not torch.equal(other.image, first(sample, np.random.default_rng(5)).image)


def test_an_augmentation_leaves_its_input_alone() -> None:
    sample, copy = a_sample(), a_sample()
    for seed in range(4):
        Augmentation(TASKS)(sample, np.random.default_rng(seed))
    assert_equal(sample, copy)


def test_jitter_changes_colours_only_and_keeps_them_in_range() -> None:
    sample = a_sample()
    jittered = Augmentation(TASKS, flip=0, scales=(1,), jitter=0.5)(sample, np.random.default_rng(1))
    assert not torch.equal(jittered.image, sample.image)
    assert jittered.image.dtype == torch.float32
    assert 0 <= jittered.image.min() <= jittered.image.max() <= 1
    for name in sample.targets:
        assert torch.equal(jittered.targets[name], sample.targets[name])


def test_targets_derived_from_the_image_belong_to_the_augmented_image() -> None:
    dataset = rooms("val", ["reconstruction", "texture_edges"])
    augmented = Augmentation(dataset.tasks, flip=1, scales=(1.5,))(dataset[0], np.random.default_rng(0))
    assert torch.equal(augmented.targets["reconstruction"], augmented.image)
    again = DERIVED["texture_edges"].compute(augmented.image, {})[0]
    assert torch.equal(augmented.targets["texture_edges"], again)


def test_a_task_of_the_same_name_from_files_is_not_computed_again() -> None:
    tasks: dict[str, Task] = {"keypoints": Regression(name="keypoints", unit="response")}
    mask = torch.ones(SIZE, dtype=torch.bool)
    sample = Sample(torch.rand(3, *SIZE), {"keypoints": torch.full((1, *SIZE), 7.0)}, {"keypoints": mask})
    augmented = Augmentation(tasks)(sample, np.random.default_rng(0))
    assert torch.equal(augmented.targets["keypoints"], sample.targets["keypoints"])


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(SimoError, match="target 'z' is of no known task"):
        flip(a_sample(), {"classes": TASKS["classes"]})


@pytest.mark.parametrize("wrong", [{"flip": 1.1}, {"scales": ()}, {"scales": (0.5,)}, {"jitter": 1.0}])
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SimoError, match="expected"):
        Augmentation(TASKS, **wrong)  # type: ignore[arg-type]
