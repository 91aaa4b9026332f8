"""What is right is called right, and counted right."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from simo_merge.checking import check_dataset
from simo_merge.data import Sample, rooms
from simo_merge.errors import SimoError
from simo_merge.tasks import Depth, Regression
from tests.checking.conftest import Listed, codes


def test_the_rooms_are_sound(sound: Listed) -> None:
    findings = check_dataset(sound)
    assert findings.sound
    assert codes(findings) == []


def test_all_pixels_and_classes_are_counted(sound: Listed) -> None:
    labels = check_dataset(sound.first(4)).to_json()["tasks"]["segmentation"]
    together = torch.stack([sample.targets["segmentation"] for sample in sound.samples[:4]]).numpy()
    names = sound.tasks["segmentation"].classes
    expected = {name: int((together == index).sum()) for index, name in enumerate(names)}
    assert labels["class_pixels"] == expected
    assert labels["absent_classes"] == [name for name in names if expected[name] == 0]
    assert labels["pixels"] == together.size
    assert labels["valid_share"] == 1.0


def test_the_json_is_plain_and_names_every_part(sound: Listed) -> None:
    plain = json.loads(json.dumps(check_dataset(sound.first(3)).to_json(), allow_nan=False))
    assert plain["sound"] is True
    assert plain["images"]["here"] == plain["images"]["read"] == 3
    assert plain["images"]["sizes"] == {"126x168": 3}
    assert plain["tasks"]["depth"]["unit"] == "m"
    assert sum(plain["tasks"]["depth"]["histogram"]["counts"]) > 0.99 * 3 * 126 * 168
    assert plain["normals_and_depth"][0]["correlation"][0][0] > 0.9


def test_the_same_data_gives_the_same_findings(sound: Listed) -> None:
    some = sound.first(13)
    assert check_dataset(some).to_json() == check_dataset(some).to_json()


def test_a_limit_takes_evenly_spaced_images_with_both_ends() -> None:
    class Watched:
        def __init__(self) -> None:
            self.inner = rooms("val", ["depth"])
            self.name, self.split, self.tasks, self.keys = "watched", "val", self.inner.tasks, self.inner.keys
            self.asked: list[int] = []

        def __len__(self) -> int:
            return len(self.inner)

        def __getitem__(self, index: int) -> Sample:
            self.asked.append(index)
            return self.inner[index]

    watched = Watched()
    assert check_dataset(watched, limit=4).statistics.images.count == 4
    assert watched.asked == [0, 20, 39, 59]


def test_nothing_to_check_is_an_error(sound: Listed) -> None:
    with pytest.raises(SimoError, match="no images"):
        check_dataset(sound.first(0))
    with pytest.raises(SimoError, match="limit is 0, expected 1 or more"):
        check_dataset(sound, limit=0)


def test_pictures_without_labels_can_be_checked(sound: Listed) -> None:
    assert check_dataset(sound.of()).sound


def test_derived_tasks_and_other_maps_are_counted_and_not_judged() -> None:
    dataset = rooms("val", ["depth", "occlusion_edges", "reconstruction"])
    findings = check_dataset(dataset, limit=14)
    assert findings.sound
    assert findings.to_json()["tasks"]["occlusion_edges"]["highest"] <= 1
    assert list(findings.statistics.edges.tasks) == ["depth"]


def test_statistics_of_a_map_that_is_valid_nowhere_are_plain_json(sound: Listed) -> None:
    nowhere = torch.zeros(126, 168, dtype=torch.bool)
    heat = Regression(name="heat")
    samples = [Sample(s.image, {"heat": torch.zeros(1, 126, 168)}, {"heat": nowhere}, s.key) for s in sound.samples[:2]]
    findings = check_dataset(Listed(samples, {"heat": heat}))
    json.dumps(findings.to_json(), allow_nan=False)
    assert codes(findings) == [("failure", "no-labels", "heat")]


def test_depth_alone_needs_nothing_else(sound: Listed) -> None:
    alone = sound.of("depth")
    assert isinstance(alone.tasks["depth"], Depth)
    counted = check_dataset(alone).to_json()["tasks"]["depth"]
    values = np.concatenate([sample.targets["depth"].numpy().ravel() for sample in sound.samples])
    assert counted["lowest"] == values.min()
    assert counted["highest"] == values.max()
    assert abs(counted["median"] / np.median(values) - 1) < 0.02
