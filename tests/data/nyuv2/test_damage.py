"""What is wrong with a copy of NYUv2 is an error that names the file, or the frame in it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simo_merge.data.nyuv2 import nyuv2
from simo_merge.errors import SimoError
from tests.trees import cityscapes
from tests.trees import nyuv2 as trees
from tests.trees.nyuv2 import World, save

h5py = pytest.importorskip("h5py")
scipy_io = pytest.importorskip("scipy.io")
pq = pytest.importorskip("pyarrow.parquet")

Tree = Callable[..., Path]


@pytest.fixture
def tree(world: World, tmp_path: Path) -> Tree:
    """Writes a tree in a folder of its own; returns the folder."""

    def writer(write: Callable[..., Path], **options: Any) -> Path:
        write(tmp_path / "tree", world, **options)
        return tmp_path / "tree"

    return writer


def read_all(root: Path, **options: Any) -> None:
    for _ in nyuv2(root, **options):
        pass


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


# -- official ---------------------------------------------------------------------------------------------------------


def test_a_download_that_was_cut_off_is_told_with_the_size_that_it_should_have(tree: Tree) -> None:
    root = tree(trees.write_official)
    halve(root / "nyu_depth_v2_labeled.mat")
    with pytest.raises(SimoError, match=r"nyu_depth_v2_labeled\.mat.* cannot be read .*has 2972037809 bytes"):
        read_all(root)


def test_a_file_that_is_no_hdf5_is_told(tree: Tree) -> None:
    root = tree(trees.write_official)
    (root / "nyu_depth_v2_labeled.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(600))
    with pytest.raises(SimoError, match=r"cannot be read as MATLAB 7\.3 \(HDF5\)"):
        read_all(root)


def test_damage_inside_names_the_frame_and_the_field(tree: Tree) -> None:
    root = tree(trees.write_official)
    path = root / "nyu_depth_v2_labeled.mat"
    with h5py.File(path) as file:
        chunk = file["depths"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    with pytest.raises(SimoError, match=r"nyu_depth_v2_labeled\.mat, frame 000\d, depths cannot be read"):
        read_all(root)


def test_another_hdf5_file_or_another_order_of_axes_is_told(tree: Tree) -> None:
    root = tree(trees.write_official)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "a") as file:
        pictures = file["images"][:]
        del file["images"]
        file["images"] = pictures.transpose(0, 3, 2, 1)
    with pytest.raises(SimoError, match=r"images \(9, 16, 24, 3\).*expected \(N, 3, W, H\)"):
        read_all(root)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "a") as file:
        del file["images"]
    with pytest.raises(SimoError, match=r"has no images; is it nyu_depth_v2_labeled\.mat\?"):
        read_all(root)


def test_a_label_beyond_the_894_names_its_frame(tree: Tree) -> None:
    root = tree(trees.write_official)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "a") as file:
        file["labels"][4, 3, 3] = 895
    with pytest.raises(SimoError, match=r"frame 0005: class ids 895 occur, expected 1 to 894, or 0"):
        read_all(root)


def test_the_filled_in_depth_is_read_and_a_zero_in_it_is_none(tree: Tree) -> None:
    root = tree(trees.write_official)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "a") as file:
        file["depths"][0, 7, 2] = 0
    sample = nyuv2(root, tasks=["depth"])[0]
    assert int((~sample.masks["depth"]).sum()) == 1
    assert not sample.masks["depth"][2, 7]


def test_the_archive_of_normals_counts_from_0_and_its_mask_counts(tree: Tree, world: World) -> None:
    root = tree(trees.write_official)
    sample = nyuv2(root, "test", ["normals"])[0]
    row, column = trees.COVERED
    assert not sample.masks["normals"][row, column]  # the picture has a normal there
    (root / "normals_gt").rename(root / "elsewhere")
    assert list(nyuv2(root).tasks) == ["segmentation", "depth"]
    for name in ("normals", "masks"):  # unpacked without a folder around it
        (root / "elsewhere" / name).rename(root / name)
    assert np.array_equal(nyuv2(root, "test", ["normals"])[0].masks["normals"], world.frames[1].valid)
    (root / "masks").rename(root / "unused")
    bare = nyuv2(root, "test", ["normals"])[0].masks["normals"]
    assert bare[row, column]
    assert not bare[0].any()  # grey


def test_a_gap_in_the_archive_is_told_before_anything_is_read(tree: Tree) -> None:
    root = tree(trees.write_official)
    (root / "normals_gt" / "normals" / "0003.png").unlink()
    with pytest.raises(SimoError, match=r"normals_gt/normals/0003\.png does not exist: 1 of 6 images .*'normals'"):
        nyuv2(root, "train")
    halve(root / "normals_gt" / "masks" / "0001.png")
    with pytest.raises(SimoError, match=r"masks/0001\.png cannot be read as a picture"):
        read_all(root, split="test")


# -- MTAN -------------------------------------------------------------------------------------------------------------


def edit(root: Path, name: str, change: Callable[[np.ndarray], object]) -> None:
    values = np.load(root / name)
    change(values)
    np.save(root / name, values)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train/label/2.npy", lambda v: v.__setitem__((3, 3), 13), r"class ids 13 occur, expected 0 to 12, or -1"),
        ("train/label/2.npy", lambda v: v.__setitem__((3, 3), 0.5), "fractions occur, expected whole numbers"),
        ("train/label/2.npy", lambda v: v.__setitem__((3, 3), np.nan), "fractions occur, expected whole numbers"),
        ("train/depth/2.npy", lambda v: v.__setitem__((3, 3), -1.0), "a depth of -1 m, expected positive"),
        ("train/depth/2.npy", lambda v: v.__setitem__((3, 3), np.inf), "NaN or infinite values"),
        ("train/normal/2.npy", lambda v: v.__setitem__((3, 3), np.nan), "NaN or infinite values"),
        ("train/image/2.npy", lambda v: v.__imul__(255), "expected 0 to 1"),
    ],
)
def test_impossible_numbers_are_told(
    tree: Tree, name: str, change: Callable[[np.ndarray], object], message: str
) -> None:
    root = tree(trees.write_mtan)
    edit(root, name, change)
    with pytest.raises(SimoError, match=f"{name}: .*{message}"):
        read_all(root)


@pytest.mark.parametrize("name", ["image", "label", "depth", "normal"])
def test_a_truncated_array_is_named(tree: Tree, name: str) -> None:
    root = tree(trees.write_mtan)
    halve(root / "val" / name / "1.npy")
    with pytest.raises(SimoError, match=rf"val/{name}/1\.npy cannot be read"):
        read_all(root)


def test_a_label_of_another_size_than_its_image_is_told(tree: Tree) -> None:
    root = tree(trees.write_mtan)
    np.save(root / "val" / "label" / "1.npy", np.zeros((8, 12)))
    with pytest.raises(SimoError, match=r"val/label/1\.npy: the label is"):
        read_all(root)


def test_a_label_that_is_missing_is_told_before_anything_is_read(tree: Tree) -> None:
    root = tree(trees.write_mtan)
    (root / "train" / "depth" / "4.npy").unlink()
    with pytest.raises(SimoError, match=r"train/depth/4\.npy does not exist: 1 of 6 images"):
        nyuv2(root, "train")
    assert len(nyuv2(root, "train", ["normals"])) == 6


# -- parquet ----------------------------------------------------------------------------------------------------------


def test_a_damaged_parquet_file_is_named(tree: Tree) -> None:
    root = tree(trees.write_parquet)
    halve(root / "data" / "train-00001-of-00002.parquet")
    with pytest.raises(SimoError, match=r"train-00001-of-00002\.parquet cannot be read as parquet"):
        nyuv2(root, "train")


def test_rows_after_a_missing_file_have_no_number(tree: Tree) -> None:
    root = tree(trees.write_parquet, shards=3)
    (root / "data" / "train-00002-of-00003.parquet").unlink()  # the last: the others keep their numbers
    assert nyuv2(root, "train").keys == tuple(f"train/{row}" for row in range(4))
    (root / "data" / "val-00001-of-00003.parquet").unlink()
    with pytest.raises(SimoError, match="file 00001 of 00003 of val is missing"):
        nyuv2(root, "train")


def test_files_of_two_downloads_are_not_mixed(tree: Tree) -> None:
    root = tree(trees.write_parquet)
    (root / "data" / "train-00002-of-00004.parquet").write_bytes(b"")
    with pytest.raises(SimoError, match=r"train-00002-of-00004\.parquet does not belong to the others"):
        nyuv2(root, "train")


def test_rows_are_found_across_files_and_row_groups(tree: Tree, world: World) -> None:
    root = tree(trees.write_parquet, shards=2, group_rows=2)
    dataset = nyuv2(root, "train", ["depth"])
    for index in (5, 0, 2, 3, 1, 4, 4, 0):
        depth = world.frames[trees.TRAIN[index]].sparse_depth
        assert np.array_equal(dataset[index].targets["depth"][0].numpy(), depth)


def rewrite(path: Path, column: str, values: Any) -> None:
    import pyarrow as pa

    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values)), path)


def test_lists_of_different_lengths_and_missing_rows_are_told(tree: Tree) -> None:
    root = tree(trees.write_parquet, shards=1)
    path = root / "data" / "val-00000-of-00001.parquet"
    whole = np.ones((1, *trees.SIZE)).tolist()
    ragged = [[[row[: 1 + place] for place, row in enumerate(whole[0])]], whole, whole]
    rewrite(path, "depth", ragged)
    with pytest.raises(SimoError, match=r"val-00000-of-00001\.parquet, row 0, depth: lists of the lengths \[1, 2, 3"):
        read_all(root, split="test")
    rewrite(path, "depth", [whole, None, whole])
    with pytest.raises(SimoError, match="row 1, depth: "):
        read_all(root, split="test")


def test_columns_of_other_names_are_told(tree: Tree) -> None:
    root = tree(trees.write_parquet, shards=1)
    for path in (root / "data").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["image"]), path)
    with pytest.raises(SimoError, match="has the columns depth, noise, normal, segmentation; expected image"):
        nyuv2(root, "train")


def test_a_column_that_is_not_there_is_a_task_less(tree: Tree) -> None:
    root = tree(trees.write_parquet, shards=1)
    for path in (root / "data").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["normal"]), path)
    assert list(nyuv2(root, "train").tasks) == ["segmentation", "depth"]


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["image", "seg13", "depth", "normal"])
def test_a_damaged_picture_is_named(tree: Tree, folder: str) -> None:
    root = tree(trees.write_extracted)
    halve(root / folder / "test" / "00009.png")
    with pytest.raises(SimoError, match=rf"{folder}/test/00009\.png cannot be read as a picture"):
        read_all(root)


def test_depth_that_went_through_8_bits_is_refused(tree: Tree) -> None:
    root = tree(trees.write_extracted)
    path = root / "depth" / "train" / "00003.png"
    save(path, (np.array(Image.open(path)) >> 8).astype(np.uint8))
    with pytest.raises(SimoError, match=r"00003\.png: the file has 8-bit values .*expected 16-bit"):
        read_all(root)


def test_a_frame_in_both_parts_is_refused(tree: Tree) -> None:
    root = tree(trees.write_extracted)
    picture = root / "image" / "test" / "00001.png"
    (root / "image" / "train" / "00001.png").write_bytes(picture.read_bytes())
    with pytest.raises(SimoError, match=r"00001\.png: this frame is in train and in test"):
        nyuv2(root)


def test_the_folder_of_the_wanted_classes_must_be_there(tree: Tree) -> None:
    root = tree(trees.write_extracted)
    (root / "seg13").rename(root / "seg")
    with pytest.raises(SimoError, match="seg13 is not a folder; expected it for 13 classes"):
        nyuv2(root, classes=13)
    assert len(nyuv2(root).tasks["segmentation"].classes) == 40  # type: ignore[attr-defined]


def test_classes_of_which_it_cannot_be_told_where_they_begin_are_refused(tree: Tree) -> None:
    root = tree(trees.write_extracted)
    for path in (root / "seg13").rglob("*.png"):
        save(path, np.full(trees.SIZE, 4, np.uint8))
    with pytest.raises(SimoError, match="cannot be told whether classes count from 0 or from 1"):
        read_all(root)


def test_a_picture_of_the_other_numbering_among_the_rest_is_refused(tree: Tree) -> None:
    root = tree(trees.write_extracted)
    save(root / "seg13" / "test" / "00009.png", np.full(trees.SIZE, 13, np.uint8))
    with pytest.raises(SimoError, match=r"00009\.png: class ids 13 occur, expected 0 to 12, or 255"):
        read_all(root)


def test_files_of_two_kinds_in_one_folder_are_an_ambiguity(tree: Tree) -> None:
    root = tree(trees.write_nyud_mt)
    (root / "normals" / ".DS_Store.png").touch()  # what a file manager left does not count
    nyuv2(root)
    (root / "normals" / "0001.png").touch()
    with pytest.raises(SimoError, match=r"normals has files of the kinds \.npy and \.png; keep one kind"):
        nyuv2(root)


def test_a_matlab_file_without_its_variable_is_told(tree: Tree) -> None:
    root = tree(trees.write_nyud_mt, variant="astmt")
    scipy_io.savemat(root / "depth" / "0002.mat", {"z": np.ones(trees.SIZE)})
    with pytest.raises(SimoError, match=r"0002\.mat: expected a variable depth with numbers \(H, W\); it has z"):
        read_all(root)
    (root / "depth" / "0002.mat").write_bytes(b"nothing")
    with pytest.raises(SimoError, match=r"0002\.mat cannot be read as a MATLAB file"):
        read_all(root)


@pytest.mark.parametrize("variant", ["mtl", "invpt"])
def test_edges_are_fractions_however_they_are_stored(tree: Tree, world: World, variant: str) -> None:
    dataset = nyuv2(tree(trees.write_nyud_mt, variant=variant), "test", ["edges"])
    for key, sample in zip(dataset.keys, dataset, strict=True):
        assert np.array_equal(sample.targets["edges"][0].numpy(), world.frames[int(key)].edges)
        assert sample.masks["edges"].all()


def test_labels_without_edges_or_normals_are_fewer_tasks(tree: Tree) -> None:
    root = tree(trees.write_nyud_mt)
    (root / "edge").rename(root / "edges_of_another_tool")
    assert list(nyuv2(root).tasks) == ["segmentation", "depth", "normals"]


# -- libraries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "options", "library"),
    [
        (trees.write_official, {}, "h5py"),
        (trees.write_official, {}, "scipy"),
        (trees.write_parquet, {}, "pyarrow"),
        (trees.write_nyud_mt, {"variant": "astmt"}, "scipy"),
    ],
)
def test_a_library_that_is_missing_is_named_with_what_installs_it(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], options: dict[str, Any], library: str
) -> None:
    root = tree(write, **options)
    there = importlib.import_module

    def without(name: str, package: str | None = None) -> ModuleType:
        if name.partition(".")[0] == library:
            raise ImportError(name)
        return there(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(SimoError, match=rf"needs {library}, which is not installed: pip install 'simo-merge\[data\]'"):
        read_all(root)


def test_mtans_cityscapes_is_not_taken_for_nyuv2(tmp_path: Path) -> None:
    root = cityscapes.write_mtan(tmp_path / "streets")
    with pytest.raises(SimoError, match="none of the known layouts of nyuv2"):
        nyuv2(root)
    forced = nyuv2(root, tasks=["depth"], layout="mtan")
    with pytest.raises(SimoError, match=r"expected metres from 0\.7; is this MTAN's Cityscapes"):
        [forced[index] for index in range(len(forced))]
