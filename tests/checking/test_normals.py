"""Normals whose axes or lengths are wrong."""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest
import torch
from torch import Tensor

from simo_merge.checking import check_dataset
from simo_merge.checking.rules.normals import best_axes
from simo_merge.checking.statistics.geometry import normals_of_depth
from simo_merge.data import FolderDataset
from simo_merge.tasks import Disparity
from tests.checking.conftest import Failure, Listed, WriteRooms, codes, with_target

NAMES = ("x (right)", "y (down)", "z (towards the viewer)")


def turned(dataset: Listed, order: tuple[int, ...], signs: tuple[int, ...]) -> Listed:
    sign = torch.tensor(signs, dtype=torch.float32)[:, None, None]
    return dataset.changed(lambda s, _: with_target(s, "normals", s.targets["normals"][list(order)] * sign))


def flipped(dataset: Listed, axis: int) -> Listed:
    return turned(dataset, (0, 1, 2), tuple(-1 if index == axis else 1 for index in range(3)))


@pytest.mark.parametrize("axis", range(3))
def test_a_flipped_axis_is_found_by_the_depth(sound: Listed, failure: Failure, axis: int) -> None:
    finding = failure(flipped(sound.first(4), axis), "flipped")
    assert f"the {NAMES[axis]} axis is flipped, compared with normals computed from depth" in finding.message
    assert finding.task == "normals"


@pytest.mark.parametrize("axis", range(3))
def test_a_flipped_axis_is_found_without_depth_by_what_can_be_visible(
    sound: Listed, failure: Failure, axis: int
) -> None:
    finding = failure(flipped(sound.of("normals").first(8), axis), "flipped")
    assert f"{NAMES[axis].split(' ')[0]} " in finding.message
    assert "flipped" in finding.message


@pytest.mark.parametrize("axis", range(3))
def test_disparity_serves_as_depth(sound: Listed, failure: Failure, axis: int) -> None:
    stereo = sound.first(4).changed(lambda s, _: with_target(s, "depth", 30 / s.targets["depth"]))
    stereo.tasks["depth"] = Disparity(name="depth")
    assert f"the {NAMES[axis]} axis is flipped" in failure(flipped(stereo, axis), "flipped").message
    assert "flipped" not in [code for _, code, _ in codes(check_dataset(stereo))]


def test_several_flipped_axes_are_all_named(sound: Listed, failure: Failure) -> None:
    finding = failure(turned(sound.first(4), (0, 1, 2), (1, -1, -1)), "flipped")
    assert "the y (down) and z (towards the viewer) axes are flipped" in finding.message


def test_exchanged_channels_are_told(sound: Listed, failure: Failure) -> None:
    finding = failure(turned(sound.first(4), (2, 1, 0), (1, 1, 1)), "axes")
    assert "where x, y, z should be there are z, y, x" in finding.message


def test_a_few_steep_normals_without_depth_prove_nothing(sound: Listed) -> None:
    alone = sound.of("normals").first(1)
    small = alone.changed(lambda s, _: with_target(s, "normals", s.targets["normals"], torch.rand(s.size) < 0.01))
    assert "flipped" not in [code for _, code, _ in codes(check_dataset(flipped(small, 0)))]


def test_random_normals_are_not_called_flipped_but_do_not_follow_the_depth(sound: Listed, failure: Failure) -> None:
    def random(sample, place):
        vectors = torch.randn(3, *sample.size, generator=torch.Generator().manual_seed(place))
        vectors[2] = vectors[2].abs()
        return with_target(sample, "normals", torch.nn.functional.normalize(vectors, dim=0))

    finding = failure(sound.first(4).changed(random), "axes", "warning")
    assert "hardly follow the depth" in finding.message


def test_vectors_that_are_not_unit_fail(sound: Listed, failure: Failure) -> None:
    longer = sound.first(3).changed(lambda s, _: with_target(s, "normals", s.targets["normals"] * 1.2))
    assert "100 % of the valid normals differ from length 1" in failure(longer, "length").message


@pytest.mark.parametrize(
    ("change", "described", "level"),
    [
        (lambda n: n.astype(np.float32) / 255, {"suffix": ".npy"}, "failure"),  # bytes that were not centred
        (lambda n: (2.0 * n / 255 - 1) * 0.5, {"suffix": ".npy"}, "failure"),
        (lambda n: ((n.astype(float) - 127.5) * 0.6 + 127.5).astype(np.uint8), {}, "failure"),
        (lambda n: np.where(np.arange(168)[:, None] < 25, 127 + (n - 127.0) * 0.6, n).astype(np.uint8), {}, "warning"),
    ],
    ids=["not centred", "half as long", "flat colours", "some"],
)
def test_stored_lengths_are_looked_at_before_they_are_mended(
    write_rooms: WriteRooms, failure: Failure, change, described: dict[str, str], level: str
) -> None:
    root = write_rooms(3, {"normals": change}, normals=described)
    finding = failure(FolderDataset(root, tasks=["normals"]), "length", level)
    assert "the stored normals have lengths" in finding.message


def test_bytes_that_are_rounded_are_unit_enough(write_rooms: WriteRooms) -> None:
    assert check_dataset(FolderDataset(write_rooms(3))).sound


@pytest.mark.parametrize("flip", range(3))
def test_axes_of_a_folder_that_are_declared_wrongly_fail(write_rooms: WriteRooms, failure: Failure, flip: int) -> None:
    axes = ["right", "down", "viewer"]
    axes[flip] = ("left", "up", "away")[flip]
    failure(FolderDataset(write_rooms(3, normals={"axes": axes})), "flipped")


# -- the parts ----------------------------------------------------------------------------------------------------


def plane(normal: tuple[float, float, float], height: int = 30, width: int = 40) -> Tensor:
    """Depth of a plane through (0, 0, 3 m) ahead, by intersecting each pixel's ray with it, one by one."""
    focal = width / 2 / math.tan(math.radians(30))
    z = torch.zeros(height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            ray = np.array([(column - (width - 1) / 2) / focal, (row - (height - 1) / 2) / focal, -1.0])
            z[row, column] = float(np.dot(normal, (0, 0, -3.0)) / np.dot(normal, ray))
    return z


@pytest.mark.parametrize("normal", [(0, 0, 1), (0.6, 0, 0.8), (-0.6, 0, 0.8), (0, -0.6, 0.8), (0, 0.8, 0.6)])
def test_normals_of_a_plane_are_its_own(normal: tuple[float, float, float]) -> None:
    z = plane(normal)
    found, good = normals_of_depth(z, z > 0)
    assert bool(good.all())
    expected = torch.tensor(normal, dtype=torch.float64)[:, None, None].expand_as(found)
    assert torch.allclose(found, expected, atol=1e-9)


def test_neighbours_of_jumps_and_holes_are_left_out() -> None:
    z = plane((0, 0, 1))
    z[:, 20:] = 5.0
    z[15, 5] = 1e-3
    valid = torch.ones_like(z, dtype=torch.bool)
    valid[15, 5] = False
    good = normals_of_depth(z, valid)[1]
    assert not good[:, 18:20].any()
    assert not good[13:16, 4].any()
    assert not good[14, 3:6].any()
    assert good[:, 25:].all()


def test_the_order_and_signs_of_axes_are_found_exactly() -> None:
    everything = np.ones(3, dtype=bool)
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            seen = np.zeros((3, 3))
            seen[range(3), order] = np.array(signs) * 0.9
            assert best_axes(seen, everything) == (order, signs)


def test_an_axis_without_surfaces_is_not_judged() -> None:
    seen = np.diag([0.9, -0.9, 0.9])
    assert best_axes(seen, np.array([True, False, True])) == ((0, 1, 2), (1, 1, 1))
