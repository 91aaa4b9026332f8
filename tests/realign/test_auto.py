"""Choosing by held-out error: what helps unseen images is taken, what does not is left, and the budget holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.models.aligners import DIRECTIONS
from simo_merge.realign import Auto, CalibrationFeatures, LinearSurgery, realign, tap_distances
from simo_merge.realign.auto import useful, with_stretch, within_budget
from simo_merge.realign.candidates import IDENTITY, Candidate, Grid, cross_validate
from simo_merge.realign.chosen import fitted_aligner, smallest_of_the_best
from simo_merge.realign.closed_form import error_scale
from simo_merge.realign.folds import folded_moments
from simo_merge.realign.realignment import Calibration
from simo_merge.realign.stretch import covariance, gets_stretch
from tests.realign.degenerate import DEGENERATE
from tests.tiny import TinyData, deep_features


def candidates(*pairs: tuple[int, float]) -> list[Candidate]:
    return [Candidate("identity" if not p else "linear", p, e, rank=p or None) for p, e in pairs]


def test_the_smallest_of_those_that_explain_equally_much_is_taken() -> None:
    assert smallest_of_the_best(candidates((0, 0.1), (10, 0.8), (20, 0.8004), (30, 0.7))).parameters == 10
    assert smallest_of_the_best(candidates((0, 0.1), (10, 0.8), (20, 0.81))).parameters == 20
    assert smallest_of_the_best(candidates((0, 0.9), (10, 0.8))).parameters == 0


def test_candidates_that_a_smaller_one_beats_or_beyond_the_best_are_of_no_use() -> None:
    found = useful(candidates((0, 0.0), (10, 0.5), (15, 0.4), (20, 0.55), (30, 0.9), (40, 0.9001), (50, 0.7)))
    assert [c.parameters for c in found] == [0, 10, 20, 30]
    assert [c.parameters for c in useful(candidates((0, 0.5), (10, 0.2)))] == [0]


@pytest.mark.parametrize("unit", [1, 1000])  # the larger sizes are shared out in parts of a budget
def test_the_choice_within_a_budget_is_the_best_of_all_combinations(unit: int) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(30):
        cells = {}
        for tap in range(3):
            gains = torch.rand(4, generator=generator).tolist()
            sizes = (unit * torch.randint(1, 50, (4,), generator=generator)).tolist()
            cells["a", tap] = candidates((0, 0.0), *zip(sizes, gains, strict=True))
        budget = 70 * unit + unit // 2
        chosen = within_budget(cells, budget)
        assert sum(c.parameters for c in chosen.values()) <= budget
        every = itertools.product(*cells.values())
        best = max(sum(c.explained for c in one) for one in every if sum(c.parameters for c in one) <= budget)
        assert sum(c.explained for c in chosen.values()) >= best - 3e-3  # a thousandth a cell is no difference
        exact = within_budget(cells, float("inf"))
        assert (
            sum(c.explained for c in exact.values()) >= sum(max(x.explained for x in c) for c in cells.values()) - 4e-3
        )


def test_with_no_budget_nothing_is_changed() -> None:
    assert within_budget({("a", 0): candidates((0, 0.1), (10, 0.9))}, 0)["a", 0].kind == "identity"


def test_what_one_tap_lost_is_read_from_another() -> None:
    found = deep_features(count=30, noise=0.05)
    cells = cross_validate(folded_moments(found, True), ["a"], Grid())
    for tap in (0, 1):
        best = smallest_of_the_best(cells["a", tap])
        assert best.reads == "all"
        assert best.explained > max(c.explained for c in cells["a", tap] if c.reads == "own") + 0.05


def test_an_alignment_that_would_harm_is_not_chosen() -> None:
    """The expert's features are the merged ones, so that every correction is noise."""
    found = deep_features(count=4, tokens=3)
    experts = {"a": found.merged}
    cells = cross_validate(folded_moments(CalibrationFeatures(found.merged, experts), True), ["a"], Grid())
    assert all(smallest_of_the_best(cell).kind == "identity" for cell in cells.values())
    for cell in cells.values():
        assert next(c.explained for c in cell if c.kind == "identity") == pytest.approx(1)


@pytest.mark.parametrize("method", [Auto(None), LinearSurgery("auto", "auto", "auto"), LinearSurgery(4, "auto")])
def test_one_image_leaves_the_features_alone(
    merged: MultiTaskModel, experts: list[SingleTaskModel], method: Auto | LinearSurgery
) -> None:
    aligned = realign(merged, experts, TinyData(1), method)
    assert not aligned.aligners
    assert aligned.merge is not None
    assert (aligned.merge.alignment or {})["trainable_parameters"] == 0


@pytest.mark.parametrize("make", DEGENERATE)
def test_degenerate_features_give_finite_aligners_no_worse_than_none(
    make: Callable[[], CalibrationFeatures],
) -> None:
    found = make()
    moments = folded_moments(found, joint=True)
    cells = cross_validate(moments, ["a"], Grid())
    chosen = [smallest_of_the_best(cell) if cell else IDENTITY for cell in cells.values()]
    assert all(torch.isfinite(torch.tensor(c.explained)) for cell in cells.values() for c in cell)
    shape = SimpleNamespace(tap_channels=moments.widths, prefix_tokens=found.merged.prefix[0].shape[1])
    model = cast(MultiTaskModel, SimpleNamespace(encoder=shape))
    alone = Calibration(found, TinyData(1), torch.device("cpu")).alone()
    spreads = {cell: covariance(theirs) for cell, theirs in alone.items()}
    for stretch in ("none", "channels", "directions"):
        aligner = fitted_aligner(model, moments, "a", chosen, None, stretch, spreads if stretch == DIRECTIONS else {})
        for patches, expert, before in zip(
            found.merged.aligned(aligner)[0], found.experts["a"].patches, found.merged.patches, strict=True
        ):
            assert torch.isfinite(patches).all()
            unit = error_scale(expert.double().std((0, 1), correction=0))
            after, none = (((p.double() - expert) / unit).square().sum() for p in (patches, before))
            if stretch == "none":  # which is for the least error alone
                assert after <= none * (1 + 1e-3) + 1e-3


@pytest.mark.parametrize("method", [Auto(None), LinearSurgery("auto", "auto", "auto")])
def test_the_choice_and_every_candidate_are_recorded(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, method: Auto | LinearSurgery
) -> None:
    aligned = realign(merged, experts, images, method)
    assert aligned.merge is not None
    record = aligned.merge.alignment or {}
    for task in merged.tasks:
        for tap in range(2):
            table = record["held_out"][task][tap]
            assert {"identity", "linear own rank 16 ridge 0.01", "linear all full ridge 0.1"} <= set(table)
            rows = record["chosen"]
            label = (
                rows[task][tap] if isinstance(rows, dict) else rows[tap + 2 * list(merged.tasks).index(task)]["aligner"]
            )
            assert table[label] >= max(table.values()) - 2e-3
    assert record["trainable_parameters"] == sum(p.numel() for p in aligned.aligners.parameters())


@pytest.mark.parametrize("budget", [0, 300, 0.01, 5000])
def test_the_aligners_stay_within_the_budget(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData, budget: float
) -> None:
    method = Auto(budget)
    limit = budget if budget >= 1 else budget * sum(p.numel() for p in merged.encoder.parameters())
    aligned = realign(merged, experts, images, method)
    used = sum(p.numel() for p in aligned.aligners.parameters())
    assert used <= limit
    assert aligned.merge is not None
    record = aligned.merge.alignment or {}
    assert used == record["trainable_parameters"] == sum(row["parameters"] for row in record["chosen"])
    if budget == 300:
        assert used > 0
        assert any("does not fit the budget" in row["because"] for row in record["chosen"])


def test_images_that_nothing_was_fitted_to_come_closer_to_the_experts() -> None:
    found = deep_features(count=40, noise=0.2)
    fit, new = found.subset(slice(0, 30)), found.subset(slice(30, 40))
    moments = folded_moments(fit, True)
    cells = cross_validate(moments, ["a"], Grid())
    chosen = [smallest_of_the_best(cells["a", tap]) for tap in (0, 1)]
    model = SimpleNamespace(encoder=SimpleNamespace(tap_channels=(6, 8), prefix_tokens=2))
    aligner = fitted_aligner(model, moments, "a", chosen)  # type: ignore[arg-type]
    assert aligner is not None
    for before, after in zip(
        tap_distances(new.merged, new.experts["a"], (0, 1)),
        tap_distances(new.merged, new.experts["a"], (0, 1), aligner),
        strict=True,
    ):
        assert after.explained_variance > before.explained_variance + 0.1
        assert after.l1 < before.l1


def test_small_aligners_are_taken_where_no_larger_one_fits_with_its_stretch() -> None:
    """A tap of 384 channels: behind a full matrix rank 8 is hardly smaller than rank 32, but it alone fits."""
    sizes = {"shift": (768, 0.5), "rank 8": (6_912, 0.68), "rank 32": (25_344, 0.8), "rank 64": (49_920, 0.86)}
    plain = candidates((0, 0.1), *sizes.values())
    stretched = with_stretch(plain, "directions", 384)
    assert [c.parameters for c in stretched] == [0, *(size + 385 * 384 for size, _ in sizes.values())]
    cell = ("a", 0)
    assert within_budget({cell: stretched}, 160_000)[cell].explained == 0.68
    assert within_budget({cell: stretched}, 148_700)[cell].explained == 0.5
    assert within_budget({cell: stretched}, 148_000)[cell].explained == 0.1
    two = within_budget({cell: stretched, ("b", 0): stretched}, 335_000)  # not rank 64 and nothing, which fits, too
    assert sorted(c.explained for c in two.values()) == [0.68, 0.8]
    assert sum(c.parameters for c in two.values()) <= 335_000


@pytest.mark.parametrize(
    ("kind", "channels", "directions"),
    [("identity", False, False), ("affine", False, True), ("shift", True, True), ("linear", True, True)],
)
def test_what_has_the_experts_deviations_is_not_stretched_along_channels(
    kind: str, channels: bool, directions: bool
) -> None:
    assert gets_stretch(kind, "channels") is channels
    assert gets_stretch(kind, "directions") is directions
    assert not gets_stretch(kind, "none")


@pytest.mark.parametrize("options", [{"budget": -1}, {"reads": "none"}])
def test_options_of_auto_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(SimoError, match=r"got -1|got 'none'"):
        Auto(**options)  # type: ignore[arg-type]
