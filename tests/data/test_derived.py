"""Derived tasks against plain, slow versions of their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from simo_merge.data import DERIVED, rooms
from simo_merge.data.derived import LIGHT, keypoints, occlusion_edges, shading, texture_edges

SEEN = torch.ones(9, 11, dtype=torch.bool)


def plane_depth(slope_x: float, slope_y: float, height: int = 9, width: int = 11) -> Tensor:
    """Depth of a plane: 1 / z is affine in the pixel's position."""
    v, u = np.mgrid[0:height, 0:width]
    return torch.from_numpy(1 / (0.4 + slope_x * u + slope_y * v)).float()[None]


@pytest.mark.parametrize("slopes", [(0.0, 0.0), (0.02, 0.0), (-0.01, 0.03)])
def test_a_plane_has_no_occlusion_edge_however_it_leans(slopes: tuple[float, float]) -> None:
    target, mask = occlusion_edges(plane_depth(*slopes), SEEN)
    assert target.max() < 1e-6
    assert mask.all()


def test_a_step_of_depth_is_an_occlusion_edge_on_both_sides_whatever_the_unit() -> None:
    depth = torch.full((1, 9, 11), 2.0)
    depth[..., 6:] = 3.0
    target, _ = occlusion_edges(depth, SEEN)
    c = 4 * (1 / 2 - 1 / 3) / (1 / 2 + 2 / 2 + 1 / 3)
    assert target[0, 4, 5].item() == pytest.approx(c**2 / (c**2 + 0.05**2), abs=1e-5)
    assert (target[0, :, 5:7] > 0.9).all()
    assert target[0, :, :5].max() < 1e-6
    assert torch.allclose(occlusion_edges(depth * 1000, SEEN)[0], target, atol=1e-5)


def test_missing_depth_makes_its_neighbours_unknown_and_no_edges() -> None:
    depth, mask = torch.full((1, 9, 11), 2.0), SEEN.clone()
    mask[4, 5] = False
    depth[0, 4, 5] = 0
    target, valid = occlusion_edges(depth, mask)
    assert int((~valid).sum()) == 5
    assert not target.any()


def test_texture_edges_are_the_sobel_magnitude_of_luminance() -> None:
    image = torch.rand(3, 9, 11)
    target, _ = texture_edges(image, SEEN)
    luma = np.pad(np.tensordot([0.299, 0.587, 0.114], image.numpy(), 1), 1, mode="edge")
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    for y, x in [(0, 0), (4, 5), (8, 10)]:
        window = luma[y : y + 3, x : x + 3]
        squared = (window * sobel).sum() ** 2 + (window * sobel.T).sum() ** 2
        assert target[0, y, x].item() == pytest.approx(squared / (squared + 0.1**2), abs=1e-6)


def test_keypoints_answer_to_corners_not_to_edges_or_flat_parts() -> None:
    image = torch.zeros(3, 30, 30)
    image[:, 10:, 10:] = 1
    target, _ = keypoints(image, torch.ones(30, 30, dtype=torch.bool))
    assert target[0, 10, 10] > 0.8
    assert target[0, 20, 10] < 1e-6
    assert target[0, 20, 20] == 0


def test_the_keypoint_response_is_the_smaller_eigenvalue() -> None:
    image = torch.rand(3, 9, 11)
    target, _ = keypoints(image, SEEN)
    luma = np.pad(np.tensordot([0.299, 0.587, 0.114], image.numpy(), 1), 1, mode="edge")
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    tensor = np.zeros((2, 2))
    binomial = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            window = luma[4 + dy : 7 + dy, 5 + dx : 8 + dx]
            g = np.array([(window * sobel).sum(), (window * sobel.T).sum()])
            tensor += binomial[dy + 2, dx + 2] * np.outer(g, g)
    smaller = np.linalg.eigvalsh(tensor)[0]
    assert target[0, 4, 5].item() == pytest.approx(smaller / (smaller + 0.05**2), abs=1e-6)


def test_shading_is_the_cosine_to_the_light_and_dark_behind() -> None:
    light = torch.tensor(LIGHT)
    normals = torch.stack([light, -light, torch.tensor([1.0, 0, 0])], dim=1)[:, None]  # (3, 1, 3)
    target, mask = shading(normals, torch.tensor([[True, True, False]]))
    assert target[0, 0].tolist() == pytest.approx([1.0, 0.0, 0.0])
    assert mask.tolist() == [[True, True, False]]


def test_on_the_rooms_every_derived_task_is_in_range_and_not_constant() -> None:
    dataset = rooms("val", list(DERIVED))
    sample = dataset[3]
    for name, task in dataset.tasks.items():
        target = sample.targets[name]
        assert target.shape == (task.out_channels, 126, 168)
        assert target.dtype == torch.float32
        assert target.min() >= 0
        assert target.max() <= 1
        assert target.std() > 0.05
        assert sample.masks[name].all()
    assert torch.equal(sample.targets["reconstruction"], sample.image)


def test_a_derived_target_does_not_share_memory_with_the_image() -> None:
    sample = rooms("val", ["reconstruction"])[0]
    assert sample.targets["reconstruction"].data_ptr() != sample.image.data_ptr()
