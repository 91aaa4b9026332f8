"""Labels that belong to other images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from simo_merge.checking import check_dataset
from simo_merge.checking.statistics.edges import EdgeStatistics, chosen, label_edges
from simo_merge.data import Sample
from simo_merge.tasks import Depth, Normals, Regression, Segmentation
from tests.checking.conftest import Failure, Listed, codes, with_target


def paired(dataset: Listed, task: str, order: list[int]) -> Listed:
    """Label i is that of image `order[i]`."""
    labels = [dataset.samples[place].targets[task] for place in order]
    return dataset.changed(lambda sample, place: with_target(sample, task, labels[place]))


@pytest.mark.parametrize("task", ["segmentation", "depth", "normals"])
def test_labels_that_are_off_by_one_are_told_with_the_image_they_fit(
    sound: Listed, failure: Failure, task: str
) -> None:
    some = sound.of(task).first(16)
    finding = failure(paired(some, task, [*range(1, 16), 0]), "pairing")
    assert finding.task == task
    assert "labels belong to other images" in finding.message
    pairs = zip(some.keys, some.keys[1:] + some.keys[:1], strict=True)
    right = {f"the label of {label} fits the image of {image}" for label, image in pairs}
    assert set(finding.details) <= right
    assert len(finding.details) >= 8


def test_numbers_that_were_sorted_as_text_are_found(sound: Listed, failure: Failure) -> None:
    some = sound.of("segmentation").first(16)
    failure(paired(some, "segmentation", sorted(range(16), key=str)), "pairing")


def test_labels_of_images_that_are_not_compared_fail_too(sound: Listed, failure: Failure) -> None:
    labels = [sample.targets["segmentation"] for sample in sound.samples[15:]]
    some = sound.of("segmentation").first(15)
    wrong = some.changed(lambda sample, place: with_target(sample, "segmentation", labels[place]))
    assert "no better than those of other images" in failure(wrong, "pairing").message


def test_one_wrong_modality_does_not_blame_the_others(sound: Listed, failure: Failure) -> None:
    some = sound.of("segmentation", "depth").first(16)
    assert failure(paired(some, "depth", [*range(1, 16), 0]), "pairing").task == "depth"


def test_a_third_of_wrong_pairs_is_found(sound: Listed, failure: Failure) -> None:
    order = [*range(20), *range(21, 30), 20]
    finding = failure(paired(sound.of("segmentation"), "segmentation", order), "pairing")
    assert len(finding.keys) >= 8
    assert set(finding.keys) <= set(sound.keys[20:])


def test_a_few_images_prove_nothing(sound: Listed) -> None:
    few = sound.of("segmentation").first(8)
    assert "pairing" not in [c for _, c, _ in codes(check_dataset(paired(few, "segmentation", [*range(1, 8), 0])))]


def test_a_map_of_which_nothing_is_known_is_only_suspected(sound: Listed, failure: Failure) -> None:
    maps = [Sample(s.image, {"heat": t}, {"heat": m}, s.key) for s, t, m in _heat(sound)]
    dataset = Listed(maps, {"heat": Regression(name="heat")}, "mine")
    failure(dataset, "pairing", "warning")


def _heat(sound: Listed) -> list[tuple[Sample, torch.Tensor, torch.Tensor]]:
    depths = [sample.targets["depth"] for sample in sound.samples[:16]]
    return [(s, depths[place - 1], s.masks["depth"]) for place, s in enumerate(sound.samples[:16])]


def test_images_without_edges_and_labels_without_borders_are_passed_over(sound: Listed) -> None:
    blank = sound.of("segmentation").first(14).changed(lambda s, _: replace(s, image=torch.full_like(s.image, 0.3)))
    assert "pairing" not in [code for _, code, _ in codes(check_dataset(blank))]
    noise = (
        sound.of("segmentation")
        .first(14)
        .changed(lambda s, _: with_target(s, "segmentation", torch.randint(0, 13, s.size)))
    )
    assert "pairing" not in [code for _, code, _ in codes(check_dataset(noise))]


def test_the_score_is_that_of_a_slow_and_plain_count(sound: Listed) -> None:
    """Scores with means of rows and columns taken out, in robust standard errors, written out with loops."""
    edges = EdgeStatistics(sound.of("segmentation").tasks)
    for sample in sound.of("segmentation").first(5).samples:
        edges.add(sample)
    images, labels = edges._images, edges._labels["segmentation"]
    count = len(images)
    scores = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            strength = (images[j].astype(float) - images[j].mean()) / images[j].std()
            scores[i, j] = np.mean([value for value, edge in zip(strength, labels[i], strict=True) if edge])
    centred = np.array(
        [
            [scores[i, j] - scores[i].mean() - scores[:, j].mean() + scores.mean() for j in range(count)]
            for i in range(count)
        ]
    )
    wrong = [centred[i, j] for i in range(count) for j in range(count) if i != j]
    deviation = 1.4826 * np.median(np.abs(wrong - np.median(wrong)))
    fit = edges.fit("segmentation")
    assert fit is not None
    assert fit.z == pytest.approx(np.mean(np.diag(centred)) / deviation * count**0.5, rel=1e-4)


def test_up_to_64_images_are_compared_in_runs_of_neighbours() -> None:
    assert chosen(list(range(64))) == set(range(64))
    some = sorted(chosen(list(range(1000))))
    assert len(some) == 64
    assert {0, 7, 992, 999} <= set(some)
    assert all(some[run * 8 + 7] - some[run * 8] == 7 for run in range(8))


def test_edges_of_labels_are_where_neighbours_differ() -> None:
    mask = torch.ones(3, 4, dtype=torch.bool)
    ids = torch.tensor([[0, 0, 1, 1]] * 3)
    expected = torch.tensor([[False, False, True, False]] * 3)
    assert torch.equal(label_edges(Segmentation(classes=("a", "b")), ids, mask), expected)
    depth = torch.tensor([[1.0, 1.05, 2.0, 2.1]] * 3)[None]
    assert torch.equal(label_edges(Depth(), depth, mask), expected)
    normals = torch.zeros(3, 3, 4)
    normals[2, :, :2], normals[0, :, 2:] = 1, 1
    assert torch.equal(label_edges(Normals(), normals, mask), expected)
    mask[:, 1] = False
    assert not label_edges(Depth(), depth, mask).any(), "what has no label has no edge"
