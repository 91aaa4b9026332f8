"""What a mirror, a zoom and a crop do to images, labels and masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from simo_merge.data import DERIVED, ROOMS_TASKS, Augmentation, Sample, rooms
from simo_merge.data.transforms import enlarge_and_crop, flip, zoom
from simo_merge.errors import SimoError
from simo_merge.tasks import Task
from tests.data.samples import BASE, SIZE, TASKS, a_sample, assert_equal

FOCAL = 30.0


def cropped(sample: Sample, tasks: dict[str, Task], scale: float, top: float = 0.5, left: float = 0.5) -> Sample:
    """`enlarge_and_crop` to the sample's own size: what can be expected of `zoom` holds for it too."""
    return enlarge_and_crop(sample, tasks, scale, sample.size, top, left)


CLOSER: tuple[Callable[..., Sample], ...] = (zoom, cropped)
SEEDS = st.integers(0, 1000)
PLACES = st.floats(0, 1)
SCALES = st.floats(1, 3)


# -- the geometry of planes and spheres ---------------------------------------------------------------------------


def rays(size: tuple[int, int], focal: float, centre: tuple[float, float]) -> np.ndarray:
    """Where each pixel's centre looks, (3, H, W): right, down, away; `centre` is the optical axis (x, y)."""
    v, u = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
    return np.stack([(u - centre[0]) / focal, (v - centre[1]) / focal, np.ones(size)])


def a_wall(normal: tuple[float, float, float]) -> Sample:
    """A plane with this normal (right, down, viewer), 3 m away, seen by a camera of focal length FOCAL."""
    n = np.asarray(normal) / np.linalg.norm(normal)
    ray = rays(SIZE, FOCAL, (SIZE[1] / 2, SIZE[0] / 2))
    depth = -3 * n[2] / (ray[0] * n[0] + ray[1] * n[1] - ray[2] * n[2])
    everywhere = torch.ones(SIZE, dtype=torch.bool)
    normals = torch.from_numpy(n).float()[:, None, None].expand(3, *SIZE).clone()
    targets = {"z": torch.from_numpy(depth).float()[None], "n": normals}
    return Sample(torch.rand(3, *SIZE), targets, {"z": everywhere, "n": everywhere})


BALL_SIZE, BALL_FOCAL = (60, 90), 70.0
BALL_CENTRE = (BALL_SIZE[1] / 2, BALL_SIZE[0] / 2)


def a_ball(x: float, y: float) -> Sample:
    """A ball of 1 m around a point 3 m away; there is no label where it is not hit, or almost along its surface."""
    ray = rays(BALL_SIZE, BALL_FOCAL, BALL_CENTRE)
    middle = np.array([x, y, 3.0])
    along = np.einsum("chw,c->hw", ray, middle)
    length = (ray**2).sum(0)
    inside = along**2 - length * (middle @ middle - 1)
    depth = (along - np.sqrt(np.maximum(inside, 0))) / length
    outwards = depth * ray - middle[:, None, None]
    facing = -(outwards * ray).sum(0) / np.sqrt(length)
    mask = torch.from_numpy((inside > 0) & (facing > 0.4))
    normals = torch.from_numpy(outwards * np.array([1, 1, -1])[:, None, None]).float()
    targets = {"z": torch.from_numpy(depth).float()[None], "n": normals}
    return Sample(torch.rand(3, *BALL_SIZE), targets, {"z": mask, "n": mask})


def worst_angle(sample: Sample, focal: float, centre: tuple[float, float], every: slice = slice(None)) -> float:
    """Between the normals and those of the depth, in degrees: differences of points to either side.

    `every` takes the pixels where an enlarged label lies at the very centre of the pixel it comes from.
    """
    ray = rays(sample.size, focal, centre)[:, every, every]
    mask = sample.masks["z"].numpy()[every, every]
    points = sample.targets["z"][0].double().numpy()[every, every] * ray
    right, down = points[:, 1:-1, 2:] - points[:, 1:-1, :-2], points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    found = np.cross(down, right, axis=0)
    found = found / np.linalg.norm(found, axis=0) * np.array([1, 1, -1])[:, None, None]
    said = sample.targets["n"].double().numpy()[:, every, every][:, 1:-1, 1:-1]
    inner = mask[1:-1, 1:-1] & mask[1:-1, 2:] & mask[1:-1, :-2] & mask[2:, 1:-1] & mask[:-2, 1:-1]
    assert inner.sum() > 20
    return float(np.degrees(np.arccos(np.clip((found * said).sum(0)[inner], -1, 1))).max())


def fitted_normal(z: Tensor, focal: float, centre: tuple[float, float]) -> np.ndarray:
    """The normal of the plane that fits the points of a depth map best, towards the camera."""
    points = (z[0].double().numpy() * rays(SIZE, focal, centre)).reshape(3, -1)
    normal = np.linalg.svd(points - points.mean(1, keepdims=True), full_matrices=False)[0][:, 2]
    normal = normal * -np.sign(normal @ points.mean(1))
    return normal * np.array([1, 1, -1])


NORMALS = st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.just(1.0))
OFF_AXIS = st.floats(-0.4, 0.4)


@given(NORMALS)
def test_normals_of_the_mirrored_depth_are_the_mirrored_normals(normal: tuple[float, float, float]) -> None:
    mirrored = flip(a_wall(normal), TASKS)
    found = fitted_normal(mirrored.targets["z"], FOCAL, (SIZE[1] / 2, SIZE[0] / 2))
    assert np.allclose(found, mirrored.targets["n"][:, 0, 0].numpy(), atol=1e-4)


@given(NORMALS, st.sampled_from([1.2, 1.5, 2.0]), PLACES, PLACES)
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


@given(OFF_AXIS, OFF_AXIS)
def test_a_mirrored_ball_is_a_ball(x: float, y: float) -> None:
    ball = a_ball(x, y)
    assert worst_angle(ball, BALL_FOCAL, BALL_CENTRE) < 1.0  # what differences cost on a curved surface
    assert worst_angle(flip(ball, TASKS), BALL_FOCAL, BALL_CENTRE) < 1.0


@given(OFF_AXIS, OFF_AXIS, PLACES, PLACES)
def test_a_zoomed_ball_is_a_ball_of_the_zoomed_camera(x: float, y: float, top: float, left: float) -> None:
    top, left = 0.4 + top / 5, 0.4 + left / 5  # the window must hold enough of it
    zoomed = zoom(a_ball(x, y), TASKS, 3, top, left)
    cut = (round(left * 60), round(top * 40))
    centre = (3 * (BALL_CENTRE[0] - cut[0]), 3 * (BALL_CENTRE[1] - cut[1]))
    assert worst_angle(zoomed, 3 * BALL_FOCAL, centre, slice(1, None, 3)) < 1.0


@given(OFF_AXIS, OFF_AXIS)
def test_an_enlarged_ball_is_a_ball_of_the_zoomed_camera(x: float, y: float) -> None:
    enlarged = enlarge_and_crop(a_ball(x, y), TASKS, 3, (90, 135), 0.5, 0.5)
    cut = (int(0.5 * (270 - 135 + 1)), int(0.5 * (180 - 90 + 1)))
    assert (cut[0] % 3, cut[1] % 3) == (2, 0)
    enlarged = replace(enlarged, targets={n: t[..., 1:] for n, t in enlarged.targets.items()})
    enlarged = replace(enlarged, image=enlarged.image[..., 1:], masks={n: m[:, 1:] for n, m in enlarged.masks.items()})
    centre = (3 * BALL_CENTRE[0] - cut[0] - 1, 3 * BALL_CENTRE[1] - cut[1])
    assert worst_angle(enlarged, 3 * BALL_FOCAL, centre, slice(1, None, 3)) < 1.0


# -- mirror -------------------------------------------------------------------------------------------------------


@given(SEEDS)
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
    assert torch.equal(mirrored.image, sample.image.flip(2))
    for name in ("classes", "z", "d", "map"):
        assert torch.equal(mirrored.targets[name], sample.targets[name].flip(-1)), name
    assert torch.equal(mirrored.targets["n"][0], -sample.targets["n"][0].flip(-1))
    assert torch.equal(mirrored.targets["n"][1:], sample.targets["n"][1:].flip(-1))
    assert all(torch.equal(mirrored.masks[name], mask.flip(-1)) for name, mask in sample.masks.items())


# -- zoom and crop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closer", CLOSER)
@given(seed=SEEDS, scale=SCALES, top=PLACES, left=PLACES)
def test_depth_and_disparity_stay_reciprocal(
    closer: Callable[..., Sample], seed: int, scale: float, top: float, left: float
) -> None:
    nearer = closer(a_sample(seed), TASKS, scale, top, left)
    assert torch.allclose(nearer.targets["z"] * nearer.targets["d"], torch.full((1, *SIZE), BASE), rtol=1e-6)


@pytest.mark.parametrize("closer", CLOSER)
@pytest.mark.parametrize("scale", [1.2, 1.5, 2.0, 3.0])
def test_depth_is_divided_by_the_scale_and_disparity_multiplied(closer: Callable[..., Sample], scale: float) -> None:
    sample = a_sample()
    sample = replace(sample, targets=sample.targets | {"z": torch.ones(1, *SIZE), "d": torch.full((1, *SIZE), 4.0)})
    nearer = closer(sample, TASKS, scale)
    # Windows have whole pixels: 43 for 1.2 * 36 = 43.2.
    assert torch.allclose(nearer.targets["z"], torch.full((1, *SIZE), 1 / scale), rtol=0.02)
    assert torch.allclose(nearer.targets["d"], torch.full((1, *SIZE), 4 * scale), rtol=0.02)


@pytest.mark.parametrize("closer", CLOSER)
def test_an_infinite_distance_stays_infinite(closer: Callable[..., Sample]) -> None:
    sample = replace(a_sample(), targets=a_sample().targets | {"d": torch.zeros(1, *SIZE)})
    assert not closer(sample, TASKS, 1.5).targets["d"].any()


@pytest.mark.parametrize("closer", CLOSER)
@given(seed=SEEDS, scale=SCALES, top=PLACES, left=PLACES)
def test_no_label_is_invented_and_masks_stay_with_their_labels(
    closer: Callable[..., Sample], seed: int, scale: float, top: float, left: float
) -> None:
    sample = a_sample(seed)
    valid = {name: torch.where(sample.masks[name], 1.0, -1.0) for name in sample.targets}
    # Write each mask into its label: after the zoom they must still say the same.
    targets = sample.targets | {"map": valid["map"].expand(2, *SIZE), "z": valid["z"][None], "d": valid["d"][None]}
    nearer = closer(Sample(sample.image, targets, sample.masks), TASKS, scale, top, left)
    for name in ("map", "z", "d"):
        assert torch.equal(nearer.targets[name][0] > 0, nearer.masks[name])
    assert nearer.targets["classes"].dtype == torch.int64
    assert set(nearer.targets["classes"].unique().tolist()) <= {0, 1, 2}
    assert torch.allclose(nearer.targets["n"].norm(dim=0), torch.ones(SIZE), atol=1e-5)


@given(seed=SEEDS, scale=SCALES, top=PLACES, left=PLACES)
def test_labels_are_those_that_torch_finds_nearest(seed: int, scale: float, top: float, left: float) -> None:
    sample = a_sample(seed)
    zoomed = zoom(sample, TASKS, scale, top, left)
    rows, columns = max(1, round(SIZE[0] / scale)), max(1, round(SIZE[1] / scale))
    y, x = round(top * (SIZE[0] - rows)), round(left * (SIZE[1] - columns))
    for name in ("classes", "n", "map"):
        window = sample.targets[name][..., y : y + rows, x : x + columns].double()
        planes = window.reshape(1, -1, rows, columns)  # interpolate takes no integers
        found = F.interpolate(planes, size=SIZE, mode="nearest-exact").reshape(sample.targets[name].shape)
        assert torch.equal(zoomed.targets[name].double(), found), name


@pytest.mark.parametrize("closer", CLOSER)
def test_an_enlarged_label_lies_where_its_pixel_lies(closer: Callable[..., Sample]) -> None:
    sample = a_sample()
    pattern = torch.zeros(SIZE)
    pattern[:, 18:] = 1
    targets = {"map": pattern.expand(2, *SIZE)}
    nearer = closer(Sample(pattern.expand(3, *SIZE), targets, {"map": sample.masks["map"]}), TASKS, 2.0, 0.5, 0.2)
    assert torch.equal(nearer.targets["map"][0], (nearer.image[0] > 0.5).float())
    assert 0 < float(nearer.targets["map"].mean()) < 1


@pytest.mark.parametrize("closer", CLOSER)
def test_a_scale_of_1_changes_nothing(closer: Callable[..., Sample]) -> None:
    sample = a_sample()
    assert_equal(closer(sample, TASKS, 1.0, 0.9, 0.1), sample)


def test_a_crop_without_a_scale_is_a_part_of_the_sample() -> None:
    sample = a_sample()
    part = enlarge_and_crop(sample, TASKS, 1.0, (10, 20), top=0.999, left=0.0)
    assert torch.equal(part.image, sample.image[:, 14:, :20])
    for name, target in sample.targets.items():
        assert torch.equal(part.targets[name], target[..., 14:, :20]), name
        assert torch.equal(part.masks[name], sample.masks[name][14:, :20]), name


def test_every_place_of_a_crop_is_as_likely() -> None:
    ramp = torch.arange(36.0).expand(3, *SIZE)
    places = (np.arange(1700) + 0.5) / 1700
    found = [int(enlarge_and_crop(Sample(ramp), {}, 1.0, (24, 20), 0, left).image[0, 0, 0]) for left in places]
    assert np.bincount(found).tolist() == [100] * 17


def test_a_crop_of_the_enlarged_image_is_that_of_torch() -> None:
    sample = a_sample()
    found = enlarge_and_crop(sample, TASKS, 1.5, (20, 30), 0.3, 0.7)
    whole = F.interpolate(sample.image[None], scale_factor=1.5, mode="bilinear")[0]
    y, x = math.floor(0.3 * 17), math.floor(0.7 * 25)
    assert torch.allclose(found.image, whole[:, y : y + 20, x : x + 30], atol=1e-6)


def test_a_crop_larger_than_the_enlarged_sample_is_refused() -> None:
    with pytest.raises(SimoError, match=r"'a' is 24x36 \(height x width\), too small for a crop of 29x36"):
        enlarge_and_crop(a_sample(), TASKS, 1.2, (29, 36))


@pytest.mark.parametrize("change", [flip, lambda s, t: zoom(s, t, 1.5), lambda s, t: cropped(s, t, 1.5)])
def test_an_unknown_target_is_refused(change: Callable[..., Sample]) -> None:
    with pytest.raises(SimoError, match="target 'z' is of no known task"):
        change(a_sample(), {"classes": TASKS["classes"]})
