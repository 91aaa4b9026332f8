"""Label files with the traps that data sets hold: sentinels, encodings, damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simo_merge.data import FolderDataset, Sample
from simo_merge.data.labels import DepthLabels, NormalsLabels, RegressionLabels
from simo_merge.data.reading import image_from_array, labels_from_array, read_ids, read_image, read_labels
from simo_merge.errors import SimoError

Write = Callable[..., Path]


def read(write: Write, task: str, values: np.ndarray, **labels: object) -> Sample:
    """The sample of one label file; `labels` describe it."""
    return FolderDataset(write({"a": {task: values}}, {task: labels}))[0]


def full(value: object, dtype: type = np.uint8, channels: int = 0) -> np.ndarray:
    return np.full((4, 6, channels) if channels else (4, 6), value, dtype)


# -- segmentation --------------------------------------------------------------------------------------------


def test_ids_become_indices_from_0_and_invalid_ids_become_a_mask(write: Write) -> None:
    ids = full(2)
    ids[0, 0], ids[0, 1] = 0, 1
    sample = read(write, "s", ids, kind="segmentation", classes=["x", "y"], first_class=1, invalid=[0])
    assert sample.targets["s"].dtype == torch.int64
    assert sample.targets["s"][0].tolist() == [0, 0, 1, 1, 1, 1]
    assert sample.masks["s"][0].tolist() == [False, True, True, True, True, True]


@pytest.mark.parametrize("void", [-1, 255])
@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_arrays_of_integers_or_floats_hold_ids(write: Write, void: int, dtype: type) -> None:
    ids = full(3, dtype)
    ids[0, 0] = void
    labels = {"kind": "segmentation", "classes": list("wxyz"), "invalid": [void], "suffix": ".npy"}
    sample = read(write, "s", ids, **labels)
    assert int(sample.masks["s"].sum()) == 23
    assert 0 <= int(sample.targets["s"].min()) <= int(sample.targets["s"].max()) == 3


def test_the_id_after_the_last_class_can_mean_no_label(write: Write) -> None:
    sample = read(write, "s", full(2), kind="segmentation", classes=["x", "y"], invalid=[2])
    assert not sample.masks["s"].any()


def test_an_image_without_any_label_is_all_masked(write: Write) -> None:
    sample = read(write, "s", full(255), kind="segmentation", classes=["x", "y"], invalid=[255])
    assert not sample.masks["s"].any()
    assert sample.targets["s"].unique().tolist() == [0]


def test_a_class_may_be_absent(write: Write) -> None:
    sample = read(write, "s", full(2), kind="segmentation", classes=["x", "y", "z"])
    assert sample.targets["s"].unique().tolist() == [2]
    assert sample.masks["s"].all()


@pytest.mark.parametrize(("value", "first"), [(3, 1), (0, 1), (7, 0)])
def test_an_id_out_of_range_names_file_and_id(write: Write, value: int, first: int) -> None:
    with pytest.raises(SimoError, match=rf"s/a\.png: class ids {value} occur, expected {first} to {first + 1}"):
        read(write, "s", full(value), kind="segmentation", classes=["x", "y"], first_class=first)


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_a_fraction_is_no_class(write: Write, value: float) -> None:
    with pytest.raises(SimoError, match="class ids"):
        read(write, "s", full(value, np.float32), kind="segmentation", classes=["x", "y"], suffix=".npy")


def test_coloured_segmentation_is_refused(write: Write) -> None:
    with pytest.raises(SimoError, match="expected class ids"):
        read(write, "s", full(1, channels=3), kind="segmentation", classes=["x", "y"])


# -- depth ---------------------------------------------------------------------------------------------------


def test_depth_is_scaled_and_0_is_missing(write: Write) -> None:
    stored = full(1500, np.uint16)
    stored[1, 2] = 0
    sample = read(write, "d", stored, kind="depth", scale=0.001, bits=16)
    assert sample.targets["d"].shape == (1, 4, 6)
    assert float(sample.targets["d"][0, 0, 0]) == 1.5
    assert not sample.masks["d"][1, 2]
    assert int(sample.masks["d"].sum()) == 23


def test_65535_of_taskonomy_is_missing_and_0_then_is_an_error(write: Write) -> None:
    stored = full(512, np.uint16)
    stored[0, 0] = 65535
    sample = read(write, "d", stored, kind="depth", scale=1 / 512, invalid=[65535])
    assert not sample.masks["d"][0, 0]
    assert float(sample.targets["d"].max()) == 1.0
    stored[0, 1] = 0
    with pytest.raises(SimoError, match=r"a\.png: a depth of 0 m, expected positive"):
        read(write, "d", stored, kind="depth", scale=1 / 512, invalid=[65535])


def test_8_bit_depth_where_16_bits_are_expected_is_refused(write: Write) -> None:
    with pytest.raises(SimoError, match=r"d/a\.png: the file has 8-bit values .*expected 16-bit"):
        read(write, "d", full(9), kind="depth", bits=16)


def test_nan_is_an_error_unless_it_means_missing(write: Write) -> None:
    stored = full(2.0, np.float32, channels=1)
    stored[0, 0] = np.nan
    with pytest.raises(SimoError, match=r"d/a\.npy: NaN"):
        read(write, "d", stored, kind="depth", suffix=".npy")
    sample = read(write, "d", stored, kind="depth", suffix=".npy", invalid=[0, float("nan")])
    assert not sample.masks["d"][0, 0]
    assert torch.isfinite(sample.targets["d"]).all()


def test_a_mask_folder_masks(write: Write) -> None:
    labels = {"d": {"kind": "depth", "mask_folder": "seen"}, "seen": {"kind": "regression"}}
    mask = full(255)
    mask[3] = 0
    root = write({"a": {"d": full(7), "seen": mask}}, labels)
    sample = FolderDataset(root, tasks=["d"])[0]
    assert sample.masks["d"].any(dim=1).tolist() == [True, True, True, False]


# -- normals -------------------------------------------------------------------------------------------------


def test_a_normal_whose_components_sum_to_0_is_valid(write: Write) -> None:
    stored = np.zeros((4, 6, 3), np.float32)
    stored[..., 0], stored[..., 1] = 0.5**0.5, -(0.5**0.5)
    stored[0, 0] = 0
    sample = read(write, "n", stored, kind="normals", suffix=".npy")
    assert not sample.masks["n"][0, 0]
    assert int(sample.masks["n"].sum()) == 23


def test_normals_are_brought_to_unit_length_and_grey_means_none(write: Write) -> None:
    stored = full(0, channels=3)
    stored[:] = (200, 90, 240)
    stored[0, 0], stored[0, 1] = 128, 127
    sample = read(write, "n", stored, kind="normals")
    raw = torch.tensor([200.0, 90.0, 240.0]) / 127.5 - 1
    assert torch.allclose(sample.targets["n"][:, 2, 2], raw / raw.norm())
    assert sample.masks["n"][0].tolist() == [False, False, True, True, True, True]


def test_other_axes_are_converted(write: Write) -> None:
    stored = np.zeros((4, 6, 3), np.float32)
    stored[:] = (1 / 3, 2 / 3, -2 / 3)  # away, up, left
    sample = read(write, "n", stored, kind="normals", suffix=".npy", axes=["away", "up", "left"])
    expected = torch.tensor([2 / 3, -2 / 3, -1 / 3])  # right, down, towards the viewer
    assert torch.allclose(sample.targets["n"][:, 0, 0], expected)


def test_stored_vectors_can_mean_no_label(write: Write) -> None:
    stored = full(255, channels=3)
    stored[0, 0] = (0, 0, 255)
    sample = read(write, "n", stored, kind="normals", invalid=[[255, 255, 255]])
    assert int(sample.masks["n"].sum()) == 1


# -- regression and any file ---------------------------------------------------------------------------------


def test_a_regression_has_its_channels_scale_and_offset(write: Write) -> None:
    stored = full(3, np.int16, channels=2)
    sample = read(write, "r", stored, kind="regression", suffix=".npy", channels=2, scale=2, offset=-1)
    assert torch.equal(sample.targets["r"], torch.full((2, 4, 6), 5.0))
    with pytest.raises(SimoError, match="2 channels, expected 1"):
        read(write, "r", stored, kind="regression", suffix=".npy")


def test_a_label_of_another_size_is_refused_by_name(write: Write) -> None:
    with pytest.raises(SimoError, match=r"d/a\.png: the label is 6x4 and its image is 4x6"):
        read(write, "d", np.ones((6, 4), np.uint8), kind="depth")


@pytest.mark.parametrize("folder", ["images", "d"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.95])
def test_a_truncated_picture_is_named_and_not_filled_up(write: Write, folder: str, keep: float) -> None:
    root, path = noisy(write, folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(SimoError, match=rf"{folder}/a\.png cannot be read"):
        FolderDataset(root)[0]


@pytest.mark.parametrize("folder", ["images", "d"])
def test_a_picture_with_broken_bytes_is_named(write: Write, folder: str) -> None:
    root, path = noisy(write, folder)
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2] ^= 0xFF
    path.write_bytes(broken)
    with pytest.raises(SimoError, match=rf"{folder}/a\.png cannot be read"):
        FolderDataset(root)[0]


def noisy(write: Write, folder: str) -> tuple[Path, Path]:
    """A data set of 64 x 64 pixels of noise, and its file in `folder`."""
    noise = np.random.default_rng(0).integers(1, 256, (64, 64), np.uint8)
    root = write({"a": {"d": noise}}, {"d": {"kind": "depth"}})
    Image.fromarray(noise).save(root / "images" / "a.png")
    return root, root / folder / "a.png"


def test_a_damaged_or_pickled_array_is_named(write: Write) -> None:
    root = write({"a": {"d": full(1.0, np.float32)}}, {"d": {"kind": "depth", "suffix": ".npy"}})
    path = root / "d" / "a.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SimoError, match=r"d/a\.npy cannot be read"):
        FolderDataset(root)[0]
    np.save(path, np.array([{"code": 1}], dtype=object))
    with pytest.raises(SimoError, match=r"d/a\.npy cannot be read"):
        FolderDataset(root)[0]


# -- pictures and ids that are read by themselves ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_a_picture_may_be_an_array_of_fractions_or_bytes(tmp_path: Path, dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    np.save(tmp_path / "a.npy", pixels if dtype is np.uint8 else (pixels / 255.0).astype(dtype))
    image = read_image(tmp_path / "a.npy")
    assert image.dtype == torch.float32
    assert (image.mul(255).round().byte().permute(1, 2, 0).numpy() == pixels).all()


@pytest.mark.parametrize("values", [full(2.0, np.float32, 3), full(-0.5, np.float32, 3), full(np.nan, np.float32, 3)])
def test_an_array_out_of_range_is_no_picture(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(SimoError, match=r"a\.npy: pixels of .*, expected 0 to 1"):
        read_image(tmp_path / "a.npy")


def test_an_array_of_another_shape_is_no_picture(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 6)))
    with pytest.raises(SimoError, match=r"a\.npy: array \(3, 4, 6\), expected a picture \(H, W, 3\)"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("suffix", "dtype", "top"),
    [(".png", np.uint8, 255), (".png", np.uint16, 65535), (".tif", np.int32, 2_801_205), (".npy", np.float64, 18)],
)
def test_ids_keep_all_their_bits(tmp_path: Path, suffix: str, dtype: type, top: int) -> None:
    ids = np.arange(24).reshape(4, 6).astype(dtype)
    ids[0, 0] = top
    if suffix == ".npy":
        np.save(tmp_path / "a.npy", ids)
    else:
        Image.fromarray(ids).save(tmp_path / f"a{suffix}")
    assert (read_ids(tmp_path / f"a{suffix}", (4, 6)) == ids.astype(np.int64)).all()


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_ids_are_whole_numbers(tmp_path: Path, value: float) -> None:
    np.save(tmp_path / "a.npy", full(value, np.float32))
    with pytest.raises(SimoError, match=r"a\.npy: fractions occur"):
        read_ids(tmp_path / "a.npy")


def test_ids_of_another_size_or_in_colours_are_refused(tmp_path: Path) -> None:
    Image.fromarray(full(1)).save(tmp_path / "a.png")
    with pytest.raises(SimoError, match=r"a\.png: the label is 4x6 and its image is 8x6"):
        read_ids(tmp_path / "a.png", (8, 6))
    Image.fromarray(full(1, np.uint8, 3)).save(tmp_path / "b.png")
    with pytest.raises(SimoError, match=r"b\.png: RGB colours, expected class ids"):
        read_ids(tmp_path / "b.png")


def test_what_is_in_memory_is_read_as_a_file_is(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 72, dtype=np.float32).reshape(4, 6, 3)
    np.save(tmp_path / "a.npy", values)
    where = Path("an archive, row 7")
    assert torch.equal(image_from_array(where, values), read_image(tmp_path / "a.npy"))
    for labels in (NormalsLabels(axes=("away", "down", "right")), RegressionLabels(channels=3, invalid=(0.0,))):
        in_memory, in_file = (
            labels_from_array(where, labels, values, (4, 6)),
            read_labels(tmp_path / "a.npy", labels, (4, 6)),
        )
        assert all(map(torch.equal, in_memory, in_file))
    with pytest.raises(SimoError, match="an archive, row 7: the label is 4x6 and its image is 8x6"):
        labels_from_array(where, DepthLabels(), values[..., 0], (8, 6))
    with pytest.raises(SimoError, match="an archive, row 7: pixels of 0 to 255"):
        image_from_array(where, values * 255)
