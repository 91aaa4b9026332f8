"""Held-out errors from moments against errors of maps that are fitted and applied token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from simo_merge.realign import CalibrationFeatures
from simo_merge.realign.candidates import SIMPLE, Candidate, Grid, cross_validate, linear_size
from simo_merge.realign.closed_form import TapChange, error_scale, solve_change
from simo_merge.realign.folds import fold_bounds, folded_moments
from simo_merge.realign.held_out import HeldOut, Spectrum, output_scale, path_errors
from simo_merge.realign.methods import feature_moments
from tests.realign.test_folds import deep_subset
from tests.tiny import deep_features

RIDGES = (0.003, 0.1)


def tokens(found: CalibrationFeatures, tap: int | None, task: str | None) -> list[Tensor]:
    """The tokens of each group, (n, C), float64; all taps side by side where tap is None."""
    part = found.merged if task is None else found.experts[task]
    taps = range(len(part.patches)) if tap is None else [tap]
    groups = [torch.cat([part.patches[t].flatten(0, 1) for t in taps], dim=1)]
    groups += [torch.cat([part.prefix[t][:, i] for t in taps], dim=1) for i in range(part.prefix[0].shape[1])]
    return [g.double() for g in groups]


def explicit_error(
    found: CalibrationFeatures, tap: int, task: str, change: TapChange, reads: str, unit: Tensor
) -> float:
    """Error of own + up down x + offset on all tokens, a prefix token counting for all patches of its image."""
    total = 0.0
    read = tokens(found, tap if reads == "own" else None, None)
    own, wanted = tokens(found, tap, None), tokens(found, tap, task)
    for x, z, y, offset in zip(read, own, wanted, change.offsets, strict=True):
        error = (z + x @ change.down.T @ change.up.T + offset - y) / unit
        total += len(wanted[0]) / len(y) * float(error.square().sum())
    return total


@pytest.mark.parametrize("reads", ["own", "all"])
def test_the_error_of_every_rank_and_ridge_is_that_of_the_map_applied_to_the_held_out_tokens(reads: str) -> None:
    found = deep_features()
    folded = folded_moments(found, joint=True, precise=True)
    total = folded.total()
    for index, (start, end) in list(enumerate(fold_bounds(12)))[:2]:
        rest = [total[0] - folded.folds[index][0]]
        fold = found.subset(slice(start, end))
        for tap, task in ((0, "a"), (1, "b")):
            read = "own" if reads == "own" else "all"
            train, test = folded.tap(rest, tap, read), folded.tap(folded.folds[index], tap, read)  # type: ignore[arg-type]
            unit = error_scale(train.patches.deviation_y(task))
            spectrum = Spectrum.of(train.pooled_xx())
            held_out = HeldOut(test.pooled_xx(), spectrum.turned(test.pooled_xx()))
            errors = path_errors(spectrum, held_out, train, test, task, unit, RIDGES)
            assert errors.shape == (2, len(unit) + 1)
            for row, ridge in enumerate(RIDGES):
                for rank in range(1, len(unit) + 1):
                    change = solve_change(train, task, rank, ridge)
                    wanted = explicit_error(fold, tap, task, change, reads, unit)
                    assert float(errors[row, rank]) == pytest.approx(wanted, rel=1e-7)
            down, up = errors.new_zeros(1, len(spectrum.values)), errors.new_zeros(len(unit), 1)
            zero = TapChange.with_means(train, task, down, up)
            assert float(errors[0, 0]) == pytest.approx(explicit_error(fold, tap, task, zero, reads, unit), rel=1e-7)


@pytest.mark.parametrize(("tap", "task"), [(0, "a"), (1, "b")])
def test_a_map_that_reads_all_taps_is_ridge_regression_on_their_concatenated_tokens(tap: int, task: str) -> None:
    found, ridge = deep_features(), 0.03
    joint = folded_moments(found, True, folds=1, precise=True)
    change = solve_change(joint.tap(joint.total(), tap, "all"), task, None, ridge)
    xs, ds = [], []
    for x, own, y in zip(tokens(found, None, None), tokens(found, tap, None), tokens(found, tap, task), strict=True):
        weight = (12 * 15 / len(x)) ** 0.5  # a prefix token counts for all patches of its image
        xs.append(weight * (x - x.mean(0)))
        ds.append(weight * ((y - own) - (y - own).mean(0)))
    x, d = torch.cat(xs), torch.cat(ds)
    size, unit = x.norm(dim=0), error_scale(tokens(found, tap, task)[0].std(0, correction=0))
    rows = torch.cat([x / size, ridge**0.5 * torch.eye(14, dtype=torch.float64)])
    wanted = torch.cat([d / unit, torch.zeros(14, d.shape[1], dtype=torch.float64)])
    truth = torch.linalg.lstsq(rows, wanted).solution / size[:, None] * unit
    assert torch.allclose(change.up @ change.down, truth.T, atol=1e-8)


def simple_map(kind: str, x: Tensor, y: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of one group, from its training tokens."""
    one = torch.ones(x.shape[1], dtype=torch.float64)
    if kind == "identity":
        return one, 0 * one
    if kind == "shift":
        return one, y.mean(0) - x.mean(0)
    if kind == "magnitude":
        return one * ((y / unit).norm() / (x / unit).norm()), 0 * one
    scale = y.std(0, correction=0) / x.std(0, correction=0)
    return scale, y.mean(0) - scale * x.mean(0)


@pytest.mark.parametrize("kind", SIMPLE)
def test_cross_validation_of_simple_aligners_is_that_of_fitting_each_fold_by_hand(kind: str) -> None:
    found = deep_features()
    cells = cross_validate(
        folded_moments(found, False, precise=True), ["a", "b"], Grid(reads=(), simple=(kind,)), precise=True
    )
    for (task, tap), (candidate,) in cells.items():
        unit = error_scale(tokens(found, tap, task)[0].std(0, correction=0))
        error = spread = 0.0
        for start, end in fold_bounds(12):
            rest = deep_subset(found, [i for i in range(12) if not start <= i < end])
            rest_unit = error_scale(tokens(rest, tap, task)[0].std(0, correction=0))
            fold = found.subset(slice(start, end))
            groups = zip(
                *(tokens(f, tap, t) for f, t in ((rest, None), (rest, task), (fold, None), (fold, task))), strict=True
            )
            for x, y, test_x, test_y in groups:
                scale, shift = simple_map(kind, x, y, rest_unit)
                patches = len(fold.merged) * found.merged.patches[0].shape[1]
                residual = (test_x * scale + shift - test_y) / unit
                error += patches / len(test_y) * float(residual.square().sum())
        for group in tokens(found, tap, task):
            spread += 12 * 15 / len(group) * float((((group - group.mean(0)) / unit) ** 2).sum())
        assert candidate.explained == pytest.approx(1 - error / spread, rel=1e-6)


def test_cross_validation_of_linear_maps_sums_the_errors_of_all_folds() -> None:
    found = deep_features()
    grid = Grid(ranks=(2, None), ridges=(0.01,), reads=("own", "all"), simple=())
    cells = cross_validate(folded_moments(found, True, precise=True), ["a"], grid, precise=True)
    for (task, tap), candidates in cells.items():
        unit = output_scale(feature_moments(found)[tap], task)
        spread = sum(12 * 15 / len(g) * float((((g - g.mean(0)) / unit) ** 2).sum()) for g in tokens(found, tap, task))
        assert {(c.reads, c.rank) for c in candidates} == {("own", 2), ("own", None), ("all", 2), ("all", None)}
        for candidate in candidates:
            if candidate.rank is not None:
                continue  # the kept directions depend on the unit, which here is that of all images
            error = 0.0
            for start, end in fold_bounds(12):
                rest = deep_subset(found, [i for i in range(12) if not start <= i < end])
                joint = folded_moments(rest, True, folds=1, precise=True)
                change = solve_change(joint.tap(joint.total(), tap, candidate.reads), task, None, 0.01)
                fold = found.subset(slice(start, end))
                error += explicit_error(fold, tap, task, change, candidate.reads, unit)
            assert candidate.explained == pytest.approx(1 - error / spread, rel=1e-6)


def test_moments_in_float32_choose_by_the_same_numbers() -> None:
    found = deep_features()
    exact, fast = (
        cross_validate(folded_moments(found, True, precise=precise), ["a"], Grid(), precise=precise)
        for precise in (True, False)
    )
    for cell, candidates in exact.items():
        for ours, theirs in zip(fast[cell], candidates, strict=True):
            assert ours.label == theirs.label
            assert ours.explained == pytest.approx(theirs.explained, abs=1e-5)


def test_a_rank_above_the_channels_is_the_full_map_and_counted_once() -> None:
    cells = cross_validate(folded_moments(deep_features(), True), ["a"], Grid(ridges=(0.01,), simple=()))
    own = [c for c in cells["a", 0] if c.reads == "own"]
    assert [c.rank for c in own] == [1, 2, 4, None]
    assert [c.parameters for c in own] == [12 + 18, 24 + 18, 36 + 18, 36 + 18]  # offsets of three groups


def test_the_size_of_a_map_is_that_of_its_factors_or_of_the_matrix() -> None:
    assert linear_size(10, 4, 2) == 28
    assert linear_size(10, 4, 3) == linear_size(10, 4, None) == 40


def test_one_image_gives_no_candidates(caplog: pytest.LogCaptureFixture) -> None:
    cells = cross_validate(folded_moments(deep_features(count=1), True), ["a", "b"], Grid())
    assert cells == {(task, tap): [] for task in ("a", "b") for tap in (0, 1)}
    assert "one calibration image says nothing about others" in caplog.text


def test_labels_tell_candidates_apart() -> None:
    assert Candidate("linear", 9, 0.5, "all", 16, 0.03).label == "linear all rank 16 ridge 0.03"
    assert Candidate("linear", 9, 0.5, "own", None, 0.1).label == "linear own full ridge 0.1"
    assert Candidate("shift", 9, 0.5).label == "shift"
