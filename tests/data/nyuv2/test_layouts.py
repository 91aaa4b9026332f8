"""Every layout of NYUv2 gives the same pixels, masks and units: those that are true of the frames."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from simo_merge.data import SourceDataset, collate
from simo_merge.data.nyuv2 import NYUV2_LAYOUTS, nyuv2
from simo_merge.data.nyuv2.handles import PerProcess
from simo_merge.errors import SimoError
from tests.trees import nyuv2 as trees
from tests.trees.nyuv2 import Frame, World

pytest.importorskip("h5py")
pytest.importorskip("pyarrow")
pytest.importorskip("scipy")


@dataclass(frozen=True)
class Case:
    """How a layout is written, and what its files cannot hold.

    Attributes:
        write: Writes the tree.
        layout: Its name.
        classes: How many it has.
        holes: Whether the depth has the sensor's holes.
        dense: Whether normals are everywhere.
        depth: Step of the stored depth in metres.
        colour: How far JPEG moves a colour.
        normal: How far the encoding moves a component of a normal.
    """

    write: Callable[[Path, World], Path]
    layout: str
    classes: int = 13
    holes: bool = True
    dense: bool = False
    depth: float = 1e-6
    colour: float = 1e-6
    normal: float = 0.006  # half of 2 / 255, and the length that it changes


CASES = {
    "official": Case(trees.write_official, "official", holes=False),
    "mtan": Case(trees.write_mtan, "mtan", normal=1e-6),
    "mtan, whole numbers": Case(partial(trees.write_mtan, label_type=np.int64), "mtan", normal=1e-6),
    "mtan, single precision": Case(
        partial(trees.write_mtan, label_type=np.float32, image_type=np.float32), "mtan", normal=1e-6
    ),
    "parquet": Case(trees.write_parquet, "parquet", normal=1e-6),
    "parquet, large lists": Case(partial(trees.write_parquet, lists="large"), "parquet", normal=1e-6),
    "parquet, lists of fixed size": Case(partial(trees.write_parquet, lists="fixed"), "parquet", normal=1e-6),
    "parquet, extension type": Case(partial(trees.write_parquet, lists="extension"), "parquet", normal=1e-6),
    "extracted": Case(trees.write_extracted, "extracted", holes=False, dense=True, depth=0.001),
    "extracted before 2020": Case(
        partial(trees.write_extracted, old=True, zip_folder=True), "extracted", holes=False, dense=True, depth=0.001
    ),
    "nyud-mt of MTL-PyTorch": Case(trees.write_nyud_mt, "nyud-mt", classes=40, colour=0.25, normal=1e-6),
    "nyud-mt of ASTMT": Case(
        partial(trees.write_nyud_mt, variant="astmt"), "nyud-mt", classes=40, colour=0.25, normal=0.25
    ),
    "nyud-mt of InvPT": Case(partial(trees.write_nyud_mt, variant="invpt"), "nyud-mt", classes=40),
    "multimae": Case(trees.write_multimae, "multimae", classes=40, holes=False, depth=10 / 2**16),
}

ANY = pytest.mark.parametrize("name", list(CASES))


@pytest.fixture(scope="session")
def root(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tree of a case, written once."""
    written: dict[str, Path] = {}

    def writer(name: str) -> Path:
        if name not in written:
            written[name] = tmp_path_factory.mktemp("nyuv2") / "tree"
            CASES[name].write(written[name], world)
        return written[name]

    return writer


def frame_of(world: World, key: str) -> Frame:
    part, _, number = key.rpartition("/")
    if not part:
        return world.frames[int(number)]
    return world.frames[(trees.TRAIN if part == "train" else trees.TEST)[int(number)]]


@ANY
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_layout_gives_what_is_true_of_the_frames(
    root: Callable[[str], Path], world: World, name: str, split: str
) -> None:
    case = CASES[name]
    dataset = nyuv2(root(name), split)
    assert dataset.source.layout == case.layout
    assert len(dataset) == len(trees.TRAIN if split == "train" else trees.TEST)
    for key, sample in zip(dataset.keys, dataset, strict=True):
        frame = frame_of(world, key)
        assert (sample.image - torch.from_numpy(frame.image).permute(2, 0, 1) / 255).abs().max() <= case.colour
        classes = frame.classes_13 if case.classes == 13 else frame.classes_40
        known = sample.masks["segmentation"]
        assert torch.equal(known, torch.from_numpy(classes > 0))
        assert torch.equal(sample.targets["segmentation"][known], torch.from_numpy(classes - 1)[known])
        measured = torch.from_numpy(~frame.hole) if case.holes else torch.ones(trees.SIZE, dtype=torch.bool)
        assert torch.equal(sample.masks["depth"], measured)
        off = (sample.targets["depth"][0] - torch.from_numpy(frame.depth))[measured].abs()
        assert off.max() <= case.depth
        there = torch.ones(trees.SIZE, dtype=torch.bool) if case.dense else torch.from_numpy(frame.valid)
        assert torch.equal(sample.masks["normals"], there)
        direction = torch.from_numpy(frame.normals).permute(2, 0, 1).float()
        assert (sample.targets["normals"] - direction)[:, there].abs().max() <= case.normal


@ANY
def test_targets_are_of_the_declared_types_and_finite_also_where_they_mean_nothing(
    root: Callable[[str], Path], name: str
) -> None:
    dataset = nyuv2(root(name))
    assert list(dataset.tasks)[:3] == ["segmentation", "depth", "normals"]
    for sample in dataset:
        classes = sample.targets["segmentation"]
        assert classes.dtype == torch.int64
        assert 0 <= int(classes.min()) <= int(classes.max()) < CASES[name].classes
        for task in ("depth", "normals"):
            assert sample.targets[task].dtype == torch.float32
            assert sample.targets[task].isfinite().all()
        assert all(mask.dtype == torch.bool for mask in sample.masks.values())
        length = sample.targets["normals"].norm(dim=0)
        assert torch.allclose(length[sample.masks["normals"]], torch.tensor(1.0), atol=1e-5)
        assert sample.image.dtype == torch.float32
        assert 0 <= float(sample.image.min()) <= float(sample.image.max()) <= 1
    collate(list(dataset))


@ANY
def test_a_valid_normal_whose_components_add_up_to_nothing_stays_valid(
    root: Callable[[str], Path], world: World, name: str
) -> None:
    stored = {"eigen": Frame.eigen, "ladicky": Frame.ladicky, "nyud": Frame.nyud}
    sums = [abs(prop.fget(world.frames[3])[pixel].sum()) for prop in stored.values() for pixel in trees.DIAGONAL]  # type: ignore[attr-defined]
    assert sum(value < 1e-9 for value in sums) >= 3  # so it is, in one pixel or the other of each convention
    sample = nyuv2(root(name), "train")[0]
    for (row, column), sign in zip(trees.DIAGONAL, (1, -1), strict=True):
        assert sample.masks["normals"][row, column]
        expected = torch.tensor([1.0, sign, 0.0]) / 2**0.5
        assert (sample.targets["normals"][:, row, column] - expected).abs().max() < CASES[name].normal + 1e-6


@ANY
def test_an_image_without_any_label_has_an_empty_mask(root: Callable[[str], Path], name: str) -> None:
    dataset = nyuv2(root(name), "train", ["segmentation"])
    void = [index for index, number in enumerate(trees.TRAIN) if number == trees.ALL_VOID]
    assert [index for index, sample in enumerate(dataset) if not sample.masks["segmentation"].any()] == void


@ANY
def test_a_class_that_no_image_has_is_one_all_the_same(root: Callable[[str], Path], name: str) -> None:
    dataset = nyuv2(root(name), tasks=["segmentation"], classes=13 if CASES[name].classes == 13 else 40)
    seen = torch.cat([s.targets["segmentation"][s.masks["segmentation"]] for s in dataset]).unique()
    names = dataset.tasks["segmentation"].classes  # type: ignore[attr-defined]
    assert len(names) == CASES[name].classes
    absent = names.index("tv" if CASES[name].classes == 13 else "television")
    assert absent not in seen.tolist()
    assert 3 in seen.tolist()


@pytest.mark.parametrize("name", ["official", "extracted", "nyud-mt of MTL-PyTorch", "nyud-mt of ASTMT", "multimae"])
@pytest.mark.parametrize("classes", [13, 40])
def test_thirteen_or_forty_classes_where_both_are_to_be_had(
    root: Callable[[str], Path], world: World, name: str, classes: int
) -> None:
    dataset = nyuv2(root(name), "test", ["segmentation"], classes=classes)
    for key, sample in zip(dataset.keys, dataset, strict=True):
        expected = getattr(world.frames[int(key)], f"classes_{classes}")
        found = torch.where(sample.masks["segmentation"], sample.targets["segmentation"] + 1, 0)
        assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("name", ["mtan", "parquet"])
def test_forty_classes_are_refused_where_only_thirteen_are_stored(root: Callable[[str], Path], name: str) -> None:
    with pytest.raises(SimoError, match=f"layout {name} has 13 classes, not 40"):
        nyuv2(root(name), "train", classes=40)


@pytest.mark.parametrize("classes", [0, 14, 894])
def test_another_number_of_classes_is_refused(root: Callable[[str], Path], classes: int) -> None:
    with pytest.raises(SimoError, match=f"has 13 or 40 classes, not {classes}"):
        nyuv2(root("official"), "train", classes=classes)


@ANY
def test_exactly_one_layout_recognises_a_tree(root: Callable[[str], Path], name: str) -> None:
    assert [layout.layout for layout in NYUV2_LAYOUTS if layout.recognises(root(name))] == [CASES[name].layout]


def test_the_official_file_can_be_named_itself(root: Callable[[str], Path]) -> None:
    assert nyuv2(root("official") / "nyu_depth_v2_labeled.mat", "test").keys == ("0001", "0002", "0009")


@pytest.mark.parametrize("name", ["official", "mtan", "parquet", "extracted"])
def test_a_data_set_can_be_given_to_other_processes(root: Callable[[str], Path], name: str) -> None:
    dataset = nyuv2(root(name), "train")
    first = dataset[0]  # what it opened here must not be used there
    for copy in (pickle.loads(pickle.dumps(dataset)), dataset):
        loaded = list(DataLoader(copy, batch_size=2, collate_fn=collate, num_workers=2))
        assert [key for batch in loaded for key in batch.keys] == list(dataset.keys)
        assert torch.equal(loaded[0].images[0], first.image)
        assert torch.equal(loaded[0].targets["normals"][0], first.targets["normals"])
    assert torch.equal(dataset[0].image, first.image)


@pytest.mark.parametrize("name", ["official", "mtan", "parquet", "extracted", "nyud-mt of InvPT", "multimae"])
def test_the_numbers_as_they_are_stored_can_be_looked_at(root: Callable[[str], Path], name: str) -> None:
    source = nyuv2(root(name), "train").source
    key = source.split("train").keys[0]
    for task in source.tasks:
        stored = source.stored(task, key)
        assert stored is not None
        assert stored.shape[:2] == trees.SIZE


def test_another_size_and_derived_tasks(root: Callable[[str], Path]) -> None:
    sample = nyuv2(root("official"), "train", ["depth", "shading", "occlusion_edges"], size=(8, 12))[0]
    assert sample.size == (8, 12)
    assert {name: tuple(target.shape) for name, target in sample.targets.items()} == {
        "depth": (1, 8, 12),
        "shading": (1, 8, 12),
        "occlusion_edges": (1, 8, 12),
    }


def test_a_prepared_folder_is_sent_to_the_reader_of_folders(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").touch()
    with pytest.raises(SimoError, match=f"it is a folder data set; name it folder:{tmp_path}"):
        nyuv2(tmp_path, "train")


def test_nothing_of_the_kind_says_what_each_layout_expects(tmp_path: Path) -> None:
    with pytest.raises(SimoError, match=r"none of the known layouts of nyuv2.*official: .*nyu_depth_v2_labeled\.mat"):
        nyuv2(tmp_path, "train")


def test_two_layouts_in_one_folder_are_an_ambiguity(world: World, tmp_path: Path) -> None:
    trees.write_mtan(tmp_path, world)
    trees.write_official(tmp_path, world)
    with pytest.raises(SimoError, match=r"official and mtan; say which: nyuv2:.*layout=official"):
        nyuv2(tmp_path, "train")
    assert nyuv2(tmp_path, "train", layout="mtan").keys[0] == "train/0"


def test_the_layout_and_a_partial_copy_are_told(root: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        dataset = nyuv2(root("mtan"), "test")
    assert isinstance(dataset, SourceDataset)
    assert "nyuv2: layout mtan in" in caplog.text
    assert "3 of the 654 images" in caplog.text
    assert dataset.published == 654


def test_what_is_open_is_opened_once_in_a_process_and_anew_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    handle: PerProcess[int] = PerProcess()

    def opener() -> int:
        opened.append(len(opened))
        return opened[-1]

    assert [handle.get(opener), handle.get(opener)] == [0, 0]
    assert pickle.loads(pickle.dumps(handle)).get(opener) == 1
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as after a fork
    assert handle.get(opener) == 2
