"""The embedded rooms: their splits, encodings and geometry."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from simo_merge.data import ROOMS_SPLITS, ROOMS_TASKS, DenseDataset, find_rooms, rooms
from simo_merge.data.sample import Sample
from simo_merge.errors import SimoError
from simo_merge.tasks import Depth, Normals, Segmentation

ROOT = find_rooms()
COUNTS = {"train": 450, "calibration": 100, "val": 60, "test": 130}
LIMIT = 16 * 10**6


def read_cameras() -> dict[str, dict[str, float]]:
    with (ROOT / "cameras.csv").open(encoding="utf-8") as file:
        return {
            row["id"]: {name: float(row[name]) for name in ("fx", "fy", "cx", "cy")} for row in csv.DictReader(file)
        }


CAMERAS = read_cameras()


def test_splits_have_their_sizes_and_share_no_room() -> None:
    keys = {split: rooms(split).keys for split in ROOMS_SPLITS}
    assert {split: len(found) for split, found in keys.items()} == COUNTS
    assert len(set().union(*keys.values())) == sum(COUNTS.values())


def test_every_file_belongs_to_a_split() -> None:
    keys = {key for split in ROOMS_SPLITS for key in rooms(split).keys}
    for folder in ("images", *ROOMS_TASKS):
        assert {path.stem for path in (ROOT / folder).iterdir()} == keys


def test_images_and_labels_stay_small_enough_for_a_repository() -> None:
    files = [path for folder in ("images", *ROOMS_TASKS) for path in (ROOT / folder).iterdir()]
    assert sum(path.stat().st_size for path in files) < LIMIT


def test_every_room_has_a_camera() -> None:
    assert sorted(CAMERAS) == sorted(key for split in ROOMS_SPLITS for key in rooms(split).keys)


def test_the_licence_travels_with_the_set() -> None:
    card = (ROOT / "README.md").read_text(encoding="utf-8")
    for holder in ("Scopia", "KatorLegaz", "BlendSwap", "eTeks", "CC BY 3.0"):
        assert holder in card
    with (ROOT / "MODELS.csv").open(encoding="utf-8") as file:
        assert all(row["creator"] and row["licence"] for row in csv.DictReader(file))


@pytest.mark.parametrize("split", ROOMS_SPLITS)
def test_samples_have_the_promised_types_and_ranges(split: str) -> None:
    dataset = rooms(split)
    assert isinstance(dataset, DenseDataset)
    kinds = {name: type(task) for name, task in dataset.tasks.items()}
    assert kinds == {"segmentation": Segmentation, "depth": Depth, "normals": Normals}
    for index in range(0, len(dataset), 29):
        check(dataset[index])


def check(sample: Sample) -> None:
    assert sample.image.shape == (3, 126, 168)
    assert sample.image.dtype == torch.float32
    assert 0 <= sample.image.min() <= sample.image.max() <= 1
    assert all(mask.all() for mask in sample.masks.values())
    classes = sample.targets["segmentation"]
    assert classes.shape == (126, 168)
    assert classes.dtype == torch.int64
    assert 0 <= classes.min() <= classes.max() <= 12
    depth = sample.targets["depth"]
    assert depth.shape == (1, 126, 168)
    assert 0.3 < depth.min() <= depth.max() < 9
    normals = sample.targets["normals"]
    assert torch.allclose(normals.norm(dim=0), torch.ones(126, 168), atol=1e-6)
    camera = CAMERAS[sample.key]
    v, u = torch.meshgrid(torch.arange(126) + 0.5, torch.arange(168) + 0.5, indexing="ij")
    to_viewer = torch.stack(
        [(camera["cx"] - u) / camera["fx"], (camera["cy"] - v) / camera["fy"], torch.ones(126, 168)]
    )
    assert (normals * to_viewer).sum(0).min() > -0.02  # but for rounding to 8 bits, a surface faces who sees it


def test_normals_agree_with_the_depth_and_the_camera() -> None:
    dataset = rooms("val")
    for index in (0, 20, 40):
        sample = dataset[index]
        angle = angles(sample, CAMERAS[sample.key])
        assert np.median(angle) < 1.0
        assert (angle < 5).mean() > 0.7  # the rest are edges of things


def angles(sample: Sample, camera: dict[str, float]) -> np.ndarray:
    """Degrees between the stored normals and those of the surface that the depth describes."""
    z = sample.targets["depth"][0].double().numpy()
    v, u = np.mgrid[0 : z.shape[0], 0 : z.shape[1]] + 0.5
    points = np.stack([z * (u - camera["cx"]) / camera["fx"], z * (v - camera["cy"]) / camera["fy"], z], -1)
    # Differences over 4 pixels: depth is rounded to a millimetre.
    across, down = points[2:-2, 4:] - points[2:-2, :-4], points[4:, 2:-2] - points[:-4, 2:-2]
    normal = np.cross(across, down)
    normal *= -np.sign((normal * points[2:-2, 2:-2]).sum(-1, keepdims=True))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    normal[..., 2] *= -1
    stored = sample.targets["normals"].permute(1, 2, 0).double().numpy()[2:-2, 2:-2]
    return np.degrees(np.arccos(np.clip((normal * stored).sum(-1), -1, 1)))


def test_a_floor_looks_up_and_a_ceiling_down() -> None:
    dataset = rooms("val")
    classes = dataset.tasks["segmentation"].model_dump()["classes"]
    up, down = [], []
    for index in range(0, 60, 4):
        sample = dataset[index]
        y = sample.targets["normals"][1]
        up.append(y[sample.targets["segmentation"] == classes.index("floor")])
        down.append(y[sample.targets["segmentation"] == classes.index("ceiling")])
    assert torch.cat(up).median() < -0.8
    assert torch.cat(down).median() > 0.8


def test_a_folder_without_the_set_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(SimoError, match=r"not found in .*--rooms DIR"):
        find_rooms(tmp_path)
    assert find_rooms(ROOT) == ROOT


def test_unknown_splits_and_tasks_list_the_known_ones() -> None:
    with pytest.raises(SimoError, match="calibration, test, train, val"):
        rooms("training")
    with pytest.raises(SimoError, match=r"no task edges; it has segmentation, depth, normals, occlusion_edges"):
        rooms("val", ["edges"])
