"""Contact sheet and histograms show what was counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from simo_merge.checking import check_dataset
from simo_merge.checking.pictures import contact_sheet, histograms
from simo_merge.checking.pictures.canvas import shortened, text_width, ticks
from simo_merge.checking.pictures.legend import ball
from simo_merge.colours import MASKED
from simo_merge.data import FolderDataset, Sample, rooms
from simo_merge.tasks import Normals
from tests.checking.conftest import Listed, WriteRooms, with_target


def shows(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((sheet == np.array(colour)).all(axis=-1).sum())


def test_a_sheet_has_every_modality_the_colours_of_all_classes_and_grey_where_there_is_no_label(sound: Listed) -> None:
    def holes(sample: Sample, place: int) -> Sample:
        mask = torch.ones(sample.size, dtype=torch.bool)
        mask[:40] = False
        return with_target(sample, "depth", sample.targets["depth"], mask)

    dataset = sound.first(2).changed(holes)
    sheet = contact_sheet(dataset, check_dataset(dataset).statistics)
    for colour in dataset.tasks["segmentation"].colours:
        assert shows(sheet, colour) >= 14 * 14, "at least its field in the legend"
    assert shows(sheet, MASKED) > 1000
    fewer = contact_sheet(dataset.of("segmentation"), check_dataset(dataset.of("segmentation").first(1)).statistics)
    assert fewer.shape[1] < sheet.shape[1]


def test_a_sheet_passes_over_what_cannot_be_read(write_rooms: WriteRooms) -> None:
    root = write_rooms(3)
    for path in sorted((root / "images").iterdir())[:2]:
        path.write_bytes(b"")
    dataset = FolderDataset(root)
    statistics = check_dataset(dataset).statistics
    assert contact_sheet(dataset, statistics).shape == contact_sheet(dataset, statistics, shown=1).shape
    sorted((root / "images").iterdir())[2].write_bytes(b"")
    nothing = check_dataset(dataset).statistics
    assert contact_sheet(dataset, nothing).ndim == histograms(nothing).ndim == 3


def test_pictures_of_several_sizes_and_many_tasks_fit_on_a_sheet(sound: Listed) -> None:
    dataset = rooms("val", ["segmentation", "depth", "normals", "occlusion_edges", "shading", "reconstruction"])
    some = Listed([dataset[0], replace(dataset[1], key="a/very/long/key" * 20)], dataset.tasks, "mine")
    statistics = check_dataset(some).statistics
    assert contact_sheet(some, statistics).shape[1] < 1600
    assert histograms(statistics).shape[1] == 960


def test_histograms_have_a_panel_for_each_task(sound: Listed) -> None:
    one, all_ = sound.of("depth").first(2), sound.first(2)
    small, large = histograms(check_dataset(one).statistics), histograms(check_dataset(all_).statistics)
    assert large.shape[0] > small.shape[0] + 13 * 19
    assert len(np.unique(small.reshape(-1, 3), axis=0)) > 4


def test_the_ball_points_to_the_viewer_in_its_middle_and_right_on_its_right() -> None:
    drawn = ball(Normals(), 51)
    assert tuple(drawn[25, 25]) == (128, 128, 255)
    assert drawn[25, 48, 0] > 240
    assert drawn[48, 25, 1] > 240
    assert tuple(drawn[0, 0]) == (255, 255, 255)


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.3, 9.7) == [2.0, 4.0, 6.0, 8.0]
    assert ticks(-1, 1, 4) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert ticks(2, 2) == [2]


def test_a_long_key_keeps_its_end() -> None:
    short = shortened("city/" * 40 + "a1", 100)
    assert short.startswith("...")
    assert short.endswith("a1")
    assert text_width(short) <= 100
    assert shortened("a1", 100) == "a1"
