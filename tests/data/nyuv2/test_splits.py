"""The splits of NYUv2 as lists: the official ones, and the paper's on MTAN's numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from simo_merge.data.nyuv2 import nyuv2
from simo_merge.data.splits import published
from simo_merge.errors import SimoError
from tests.trees import nyuv2 as trees
from tests.trees.nyuv2 import World

PAPER = "simo-2504.11268"


def test_the_official_lists_share_out_all_1449_frames() -> None:
    train, test = published("nyuv2", "train"), published("nyuv2", "test")
    assert (len(train), len(test)) == (795, 654)
    assert sorted([*train, *test]) == [f"{frame:04d}" for frame in range(1, 1450)]
    assert (train[:4], test[:4]) == (("0003", "0004", "0005", "0006"), ("0001", "0002", "0009", "0014"))


def shuffled(count: int, seed: int) -> list[int]:
    """`torch.randperm(count, generator=torch.Generator().manual_seed(seed))` on the CPU, without torch.

    Its generator is the same Mersenne twister as numpy's legacy one; each place is exchanged with one of the places
    after it (or itself), chosen by a 32-bit word modulo their number.
    """
    words = np.random.RandomState(seed)
    places = list(range(count))
    for here in range(count - 1):
        there = here + int(words.randint(0, 2**32, dtype=np.uint32)) % (count - here)
        places[here], places[there] = places[there], places[here]
    return places


def test_the_papers_lists_are_its_draw_recomputed() -> None:
    order = shuffled(654, seed=42)
    assert published("nyuv2", f"{PAPER}/val") == tuple(f"val/{index}" for index in order[:400])
    assert published("nyuv2", f"{PAPER}/test") == tuple(f"val/{index}" for index in order[400:])
    assert published("nyuv2", f"{PAPER}/train") == tuple(f"train/{index}" for index in range(795))


@pytest.mark.parametrize("write", [trees.write_mtan, trees.write_parquet])
def test_the_papers_split_is_there_in_the_layouts_with_mtans_numbers(
    world: World, tmp_path: Path, write: Callable[[Path, World], Path]
) -> None:
    pytest.importorskip("pyarrow")
    root = write(tmp_path / "tree", world)
    validation, test = nyuv2(root, f"{PAPER}/val"), nyuv2(root, f"{PAPER}/test")
    assert sorted([*validation.keys, *test.keys]) == ["val/0", "val/1", "val/2"]
    assert (validation.published, test.published) == (400, 254)
    assert nyuv2(root, f"{PAPER}/train").keys == nyuv2(root, "train").keys
    for dataset in (validation, test):
        assert f"{PAPER}/val" in dataset.source.splits()
        for key, sample in zip(dataset.keys, dataset, strict=True):
            frame = world.frames[trees.TEST[int(key.removeprefix("val/"))]]
            assert np.allclose(sample.image.permute(1, 2, 0), frame.image / 255, atol=1e-6)


@pytest.mark.parametrize("write", [trees.write_official, trees.write_extracted, trees.write_multimae])
def test_the_papers_split_is_refused_where_mtans_numbers_are_unknown(
    world: World, tmp_path: Path, write: Callable[[Path, World], Path]
) -> None:
    pytest.importorskip("h5py")
    root = write(tmp_path / "tree", world)
    with pytest.raises(SimoError, match=r"drawn from MTAN's numbers.*never published.*mtan and parquet"):
        nyuv2(root, f"{PAPER}/val")


@pytest.mark.parametrize("write", [trees.write_mtan, trees.write_extracted, trees.write_nyud_mt])
def test_there_is_no_split_val_for_what_others_call_so_are_the_test_images(
    world: World, tmp_path: Path, write: Callable[[Path, World], Path]
) -> None:
    root = write(tmp_path / "tree", world)
    with pytest.raises(SimoError, match=r"no validation split of its own.*654 test images\. Say 'test'") as caught:
        nyuv2(root, "val")
    assert (f"'{PAPER}/val' for 400 of them" in str(caught.value)) == (write is trees.write_mtan)


def test_an_unknown_split_is_answered_with_the_known_ones(world: World, tmp_path: Path) -> None:
    with pytest.raises(SimoError, match=f"no split 'dev'.*train, test, {PAPER}/train"):
        nyuv2(trees.write_mtan(tmp_path / "tree", world), "dev")
    with pytest.raises(SimoError, match=r"no split '\.\./train'"):
        nyuv2(tmp_path / "tree", "../train")


def test_no_split_is_every_image_by_number_and_not_by_name(world: World, tmp_path: Path) -> None:
    root = trees.write_mtan(tmp_path / "tree", world)
    for folder in ("image", "label", "depth", "normal"):  # as text, 10 and 100 come before 2
        for number in (100, 10):
            (root / "train" / folder / f"{number}.npy").write_bytes((root / "train" / folder / "0.npy").read_bytes())
    expected = [f"train/{index}" for index in (0, 1, 2, 3, 4, 5, 10, 100)] + [f"val/{index}" for index in range(3)]
    assert list(nyuv2(root).keys) == expected
    assert nyuv2(root).split == "all"


def test_the_lists_beside_nyud_mt_are_used_and_counted_against_the_official_ones(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = trees.write_nyud_mt(tmp_path / "tree", world)
    (root / "gt_sets" / "train.txt").write_text("0008\n0003\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        dataset = nyuv2(root, "train")
    assert dataset.keys == ("0008", "0003")
    assert "2 of the 795 images" in caplog.text
    assert nyuv2(root, "test").keys == ("0001", "0002", "0009")
    (root / "gt_sets" / "val.txt").unlink()
    with pytest.raises(SimoError, match=r"no split 'val' in .*gt_sets; the splits there are: train"):
        nyuv2(root, "test")


def test_a_splits_file_beside_the_official_one_is_used_and_told_when_it_is_another(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("h5py")
    scipy_io = pytest.importorskip("scipy.io")
    trees.write_official(tmp_path, world)
    with caplog.at_level(logging.WARNING):
        assert nyuv2(tmp_path, "train").keys == tuple(f"{frame:04d}" for frame in trees.TRAIN)
    assert "splits.mat" not in caplog.text
    mine = {"trainNdxs": np.array([[9], [2]]), "testNdxs": np.array([[1]])}
    scipy_io.savemat(tmp_path / "splits.mat", mine)
    with caplog.at_level(logging.WARNING):
        assert nyuv2(tmp_path, "train").keys == ("0009", "0002")
    assert "splits.mat: its 2 train frames are not those of the official split" in caplog.text
    (tmp_path / "splits.mat").unlink()
    assert nyuv2(tmp_path, "test").keys == ("0001", "0002", "0009")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"trainNdxs": np.array([[0], [1]]), "testNdxs": np.array([[2]])}, r"trainNdxs holds \[0, 1\].*from 1"),
        ({"trainNdxs": np.array([[1]])}, "has no testNdxs"),
    ],
)
def test_a_splits_file_that_counts_from_0_or_lacks_a_list_is_refused(
    world: World, tmp_path: Path, stored: dict[str, np.ndarray], message: str
) -> None:
    pytest.importorskip("h5py")
    scipy_io = pytest.importorskip("scipy.io")
    trees.write_official(tmp_path, world)
    scipy_io.savemat(tmp_path / "splits.mat", stored)
    with pytest.raises(SimoError, match=message):
        nyuv2(tmp_path, "train")
    (tmp_path / "splits.mat").write_bytes(b"no MATLAB file")
    with pytest.raises(SimoError, match=r"splits\.mat cannot be read as a MATLAB file"):
        nyuv2(tmp_path, "train")


def test_a_copy_of_another_part_says_that_nothing_of_the_split_is_there(world: World, tmp_path: Path) -> None:
    root = trees.write_mtan(tmp_path / "tree", world)
    (root / "val").rename(root / "elsewhere")
    with pytest.raises(SimoError, match=r"no image of the 654 of nyuv2 \(test\)"):
        nyuv2(root, "test")
    assert len(nyuv2(root, "train")) == 6
