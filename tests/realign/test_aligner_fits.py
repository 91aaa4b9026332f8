"""Aligners beside linear surgery: each undoes a misalignment of its own form, and is least squares for others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.models.aligners import FullAffineTap, MagnitudeTap, SpatialTap, TapAligner, TokenLinearTap
from simo_merge.realign import CalibrationFeatures, Procrustes, Spatial, TokenLinear
from simo_merge.realign.chosen import write_change
from simo_merge.realign.closed_form import error_scale, solve_change
from simo_merge.realign.magnitude import magnitudes, write_magnitudes
from simo_merge.realign.methods import feature_moments
from simo_merge.realign.moments import TapMoments
from simo_merge.realign.orthogonal import procrustes, solve_procrustes
from simo_merge.realign.spatial import fit_spatial, leading_directions, spatial_moments, surroundings
from simo_merge.realign.token_linear import fit_token_linear
from tests.realign.degenerate import DEGENERATE
from tests.tiny import features, related_features


def moments_of(found: CalibrationFeatures) -> TapMoments:
    return feature_moments(found)[0]


def applied(tap: TapAligner, found: CalibrationFeatures) -> tuple[Tensor, Tensor]:
    part = found.merged
    with torch.no_grad():
        if tap.spatial:
            return tap(part.patches[0], part.prefix[0], part.grid)  # type: ignore[no-any-return]
        return tap(part.patches[0], part.prefix[0])  # type: ignore[no-any-return]


def fit(kind: str, found: CalibrationFeatures) -> TapAligner:
    channels, prefix = found.merged.patches[0].shape[-1], found.merged.prefix[0].shape[1]
    moments = moments_of(found)
    if kind == "magnitude":
        magnitude = MagnitudeTap(channels, prefix)
        write_magnitudes(moments, "a", magnitude)
        return magnitude
    if kind == "token-linear":
        token = TokenLinearTap(channels, prefix, None)
        fit_token_linear(moments, "a", token, 0.01, 1.0)
        return token
    if kind == "spatial":
        spatial = SpatialTap(channels, prefix, min(4, channels), 2)
        pick, bias = leading_directions(moments, 2)
        fit_spatial(spatial_moments(found, 0, pick, bias), "a", spatial, pick, bias, 0.01)
        return spatial
    full = FullAffineTap(channels, prefix)
    change = (
        solve_procrustes(moments, "a", True, "expert")
        if kind == "orthogonal"
        else solve_change(moments, "a", None, 0.01)
    )
    write_change(full, change)
    return full


# -- orthogonal ------------------------------------------------------------------------------------------------------


def test_a_planted_turn_and_scale_are_found_again() -> None:
    found = related_features(count=30)
    turn, _ = torch.linalg.qr(torch.randn(8, 8))
    merged = found.merged
    patches, prefix = 1.7 * merged.patches[0] @ turn + 5, 1.7 * merged.prefix[0] @ turn - torch.randn(2, 8)
    planted = CalibrationFeatures(merged, {"a": features(patches, prefix)})
    tap = FullAffineTap(8, 2)
    write_change(tap, solve_procrustes(moments_of(planted), "a", True, "raw"))
    aligned, tokens = applied(tap, planted)
    assert torch.allclose(aligned, patches, atol=1e-4)
    assert torch.allclose(tokens, prefix, atol=1e-4)
    maps = tap.maps()
    assert torch.allclose(maps.patch @ maps.patch.T, 1.7**2 * torch.eye(8, dtype=torch.float64), atol=1e-4)


def test_no_turn_of_a_plane_by_any_angle_does_better() -> None:
    x = torch.randn(50, 2, dtype=torch.float64)
    y = x @ torch.tensor([[0.3, -1.0], [0.8, 0.5]], dtype=torch.float64) + 0.3 * torch.randn(50, 2)
    turn, scale = procrustes(x.T @ x, x.T @ y, scaled=True)
    best = float((scale * x @ turn - y).square().sum())
    for angle in torch.linspace(0, 6.2832, 721, dtype=torch.float64):
        cos, sin = angle.cos(), angle.sin()
        for flip in (1, -1):
            other = torch.stack([torch.stack([cos, sin]), torch.stack([-sin * flip, cos * flip])])
            for s in torch.linspace(0.2, 2, 19):
                assert float((s * x @ other - y).square().sum()) >= best - 1e-9


def test_gradient_descent_over_turns_does_not_get_below_procrustes() -> None:
    x = torch.randn(60, 5, dtype=torch.float64)
    y = x @ torch.randn(5, 5, dtype=torch.float64) + torch.randn(60, 5)
    turn, scale = procrustes(x.T @ x, x.T @ y, scaled=False)
    assert scale == 1
    best = float((x @ turn - y).square().sum())
    reached = []
    for sign in (1.0, -1.0):
        free = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
        flip = torch.diag(torch.tensor([sign, 1, 1, 1, 1], dtype=torch.float64))
        optimizer = torch.optim.Adam([free], lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (x @ flip @ torch.matrix_exp(free - free.T) - y).square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        reached.append(float(loss.detach()))
    assert min(reached) >= best * (1 - 1e-9)
    assert min(reached) == pytest.approx(best, rel=1e-2)


def test_features_that_tell_nothing_are_not_turned() -> None:
    turn, scale = procrustes(torch.zeros(4, 4), torch.zeros(4, 4), scaled=True)
    assert torch.allclose(turn, torch.eye(4))
    assert scale == 1


# -- magnitude -------------------------------------------------------------------------------------------------------


def test_a_lost_magnitude_is_given_back_to_each_kind_of_token() -> None:
    merged = related_features().merged
    lost = features(merged.patches[0] * 0.5, merged.prefix[0] * torch.tensor([0.25, 2.0])[:, None])
    found = CalibrationFeatures(lost, {"a": merged})
    aligned, tokens = applied(fit("magnitude", found), found)
    assert torch.allclose(aligned, merged.patches[0], atol=1e-5)
    assert torch.allclose(tokens, merged.prefix[0], atol=1e-5)


def test_a_magnitude_is_the_ratio_of_norms_in_units_of_the_experts_deviation() -> None:
    found = related_features()
    unit = error_scale(found.experts["a"].patches[0].double().std((0, 1), correction=0))
    x, y = found.merged.prefix[0][:, 1].double() / unit, found.experts["a"].prefix[0][:, 1].double() / unit
    assert float(magnitudes(moments_of(found), "a")[2]) == pytest.approx(float(y.norm() / x.norm()))


# -- a map for every kind of token -----------------------------------------------------------------------------------


def test_each_map_solves_the_ridge_problem_towards_the_shared_map() -> None:
    found = related_features(count=20, noise=0.5)
    tap = TokenLinearTap(8, 2, None)
    fit_token_linear(moments_of(found), "a", tap, 0.05, 2.0)
    shared = solve_change(moments_of(found), "a", None, 0.05)
    towards = (shared.up @ shared.down).T
    unit = error_scale(found.experts["a"].patches[0].double().std((0, 1), correction=0))
    merged, expert = found.merged, found.experts["a"]
    groups = [(merged.patches[0].flatten(0, 1), expert.patches[0].flatten(0, 1), 0.05)]
    groups += [(merged.prefix[0][:, i], expert.prefix[0][:, i], 2.0) for i in range(2)]
    for change, (x, y, ridge) in zip(tap.changes(), groups, strict=True):
        x, d = x.double() - x.double().mean(0), (y - x).double() - (y - x).double().mean(0)
        size = x.norm(dim=0)
        rows = torch.cat([x / size, ridge**0.5 * torch.eye(8, dtype=torch.float64)])
        wanted = torch.cat([d / unit, ridge**0.5 * towards * size[:, None] / unit])
        truth = torch.linalg.lstsq(rows, wanted).solution / size[:, None] * unit
        assert torch.allclose(change.matrix(), truth.T, atol=1e-5)


def test_tokens_that_were_mapped_differently_are_told_apart() -> None:
    found = related_features(count=60)
    other = [torch.eye(8) + 0.5 * torch.randn(8, 8) / 8**0.5 for _ in range(3)]
    merged = found.merged
    prefix = torch.stack([merged.prefix[0][:, i] @ other[i + 1] for i in range(2)], dim=1)
    found = CalibrationFeatures(merged, {"a": features(merged.patches[0] @ other[0], prefix)})
    tap = TokenLinearTap(8, 2, None)
    fit_token_linear(moments_of(found), "a", tap, 1e-6, 1e-6)
    aligned, tokens = applied(tap, found)
    assert torch.allclose(aligned, found.experts["a"].patches[0], atol=1e-3)
    assert torch.allclose(tokens, prefix, atol=1e-3)


def test_a_heavy_ridge_leaves_prefix_tokens_the_shared_map() -> None:
    found = related_features()
    tap = TokenLinearTap(8, 2, None)
    fit_token_linear(moments_of(found), "a", tap, 0.01, 1e9)
    shared = solve_change(moments_of(found), "a", None, 0.01)
    assert torch.allclose(tap.changes()[1].matrix(), shared.up @ shared.down, atol=1e-5)


# -- spatial ---------------------------------------------------------------------------------------------------------


def on_a_grid(count: int = 30) -> CalibrationFeatures:
    """Experts whose patches take a part of one direction of their left and upper neighbour."""
    grid = (4, 5)
    x = torch.randn(count, 20, 6)
    x[..., 0] *= 4  # the direction that surroundings pick
    x -= x.mean((0, 1))  # outside the map there is an average patch
    image = x.unflatten(1, grid)
    left, upper = torch.zeros_like(image), torch.zeros_like(image)
    left[:, :, 1:], upper[:, 1:] = image[:, :, :-1], image[:, :-1]
    towards = torch.randn(6)
    y = image + (0.4 * left[..., :1] - 0.2 * upper[..., :1]) * towards
    return CalibrationFeatures(features(x, grid=grid), {"a": features(y.flatten(1, 2), grid=grid)})


def test_what_neighbours_gave_is_taken_from_them() -> None:
    found = on_a_grid()
    moments = moments_of(found)
    tap = SpatialTap(6, 0, rank=4, directions=6)
    pick, bias = leading_directions(moments, 6)
    fit_spatial(spatial_moments(found, 0, pick, bias, chunk=7), "a", tap, pick, bias, 1e-6)
    aligned, _ = applied(tap, found)
    assert torch.allclose(aligned, found.experts["a"].patches[0], atol=2e-2)
    alone = FullAffineTap(6, 0)
    write_change(alone, solve_change(moments, "a", None, 1e-6))
    error = applied(alone, found)[0] - found.experts["a"].patches[0]
    assert error.abs().mean() > 10 * (aligned - found.experts["a"].patches[0]).abs().mean()


def test_surroundings_are_the_eight_neighbours_and_zeros_outside() -> None:
    patches = torch.randn(2, 6, 3)
    pick, bias = torch.randn(2, 3), torch.randn(2)
    around = surroundings(patches, pick, bias, (2, 3)).unflatten(2, (8, 2))
    picked = (patches @ pick.T + bias).unflatten(1, (2, 3))
    offsets = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    for y in range(2):
        for x in range(3):
            for index, (dy, dx) in enumerate(offsets):
                inside = 0 <= y + dy < 2 and 0 <= x + dx < 3
                wanted = picked[:, y + dy, x + dx] if inside else torch.zeros(2, 2)
                assert torch.allclose(around[:, y * 3 + x, index], wanted, atol=1e-6)


def test_picked_directions_are_the_leading_principal_ones_and_average_to_zero() -> None:
    found = related_features(prefix=0)
    pick, bias = leading_directions(moments_of(found), 3)
    x = found.merged.patches[0].flatten(0, 1).double()
    picked = x @ pick.T + bias
    assert torch.allclose(picked.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    values, _ = torch.linalg.eigh(torch.corrcoef(x.T))
    assert torch.allclose(picked.var(0, correction=0), values[-3:], rtol=1e-6)


def test_the_spatial_solution_is_what_its_module_computes() -> None:
    """The module's own error on the images is that of the regression on tokens with their surroundings."""
    found = on_a_grid(8)
    pick, bias = leading_directions(moments_of(found), 2)
    moments = spatial_moments(found, 0, pick, bias)
    tap = SpatialTap(6, 0, rank=3, directions=2)
    fit_spatial(moments, "a", tap, pick, bias, 0.01)
    change = solve_change(moments, "a", 3, 0.01)
    x = found.merged.patches[0]
    extended = torch.cat([x, surroundings(x, pick, bias, (4, 5))], dim=-1).double()
    wanted = x + extended @ change.down.T @ change.up.T + change.offsets[0]
    assert torch.allclose(applied(tap, found)[0].double(), wanted, atol=1e-5)


# -- all of them -----------------------------------------------------------------------------------------------------


KINDS = ["magnitude", "orthogonal", "full-affine", "token-linear", "spatial"]


@pytest.mark.parametrize("make", DEGENERATE)
@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_features_give_finite_aligners_that_are_no_worse_on_them(
    kind: str, make: Callable[[], CalibrationFeatures]
) -> None:
    found = make()
    tap = fit(kind, found)
    assert all(torch.isfinite(p).all() for p in tap.parameters())
    aligned, tokens = applied(tap, found)
    assert torch.isfinite(aligned).all()
    assert torch.isfinite(tokens).all()
    if kind != "magnitude":  # which matches a length, and is no least-squares fit
        x, y = found.merged.patches[0].double(), found.experts["a"].patches[0].double()
        unit = error_scale(y.std((0, 1), correction=0))
        scatter = [((e - e.mean((0, 1))) / unit).square().sum() for e in (aligned.double() - y, x - y)]
        total = [
            s + ((e - y).mean((0, 1)) / unit).square().sum() * x[..., 0].numel()
            for s, e in zip(scatter, (aligned, x), strict=True)
        ]
        assert total[0] <= total[1] * (1 + 1e-4) + 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Procrustes(units="feet"), "'expert' or 'raw', got 'feet'"),  # type: ignore[arg-type]
        (lambda: TokenLinear(rank=0), "rank of surgery must be 1 or more"),
        (lambda: TokenLinear(prefix_ridge=0), "ridge must be positive"),
        (lambda: Spatial(directions=0), "directions read of each neighbour must be 1 or more, got 0"),
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        make()
