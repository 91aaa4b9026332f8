"""The decoder's metric against its exact Jacobian; closed forms under it against generalised least squares."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.models import Decoder, MultiTaskModel, SingleTaskModel, Taps
from simo_merge.realign import Auto, CalibrationFeatures, LinearSurgery, capture_all, realign
from simo_merge.realign.candidates import SIMPLE, Grid, cross_validate
from simo_merge.realign.closed_form import error_scale, reduced_rank_ridge, solve_change
from simo_merge.realign.decoder_metric import decoder_metrics, expert_spreads, random_direction, reading
from simo_merge.realign.folds import fold_bounds, folded_moments
from simo_merge.realign.held_out import output_scale
from simo_merge.realign.methods import feature_moments
from simo_merge.realign.output_metric import Metrics, OutputMetric
from simo_merge.tasks import Depth, Normals, Segmentation, Task
from tests.realign.test_held_out import tokens
from tests.tiny import TinyData, deep_features, related_features

KINDS: list[Task] = [Segmentation(classes=("a", "b", "c", "d")), Depth(), Normals()]


def positive(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return half @ half.T + 0.1 * torch.eye(size, dtype=torch.float64)


def curvature(task: Task, prediction: Tensor) -> Tensor:
    """H of one pixel (K,), written out."""
    if not isinstance(task, Segmentation):
        return torch.eye(len(prediction))
    p = prediction.softmax(0)
    return torch.diag(p) - torch.outer(p, p)


@pytest.mark.parametrize("task", KINDS, ids=lambda t: t.kind)
def test_random_directions_of_a_pixel_have_its_curvature_as_second_moment(task: Task) -> None:
    prediction = torch.randn(1, task.out_channels, 1, 1, generator=torch.Generator().manual_seed(1)) * 2
    many = prediction.expand(20000, -1, -1, -1)
    v = random_direction(task, many, torch.Generator().manual_seed(0))[:, :, 0, 0]
    assert torch.allclose(v.T @ v / len(v), curvature(task, prediction[0, :, 0, 0]), atol=0.02)


def test_neighbouring_pixels_get_directions_of_their_own() -> None:
    v = random_direction(Depth(), torch.zeros(4000, 1, 1, 2), torch.Generator().manual_seed(0))
    assert abs(float((v[..., 0] * v[..., 1]).mean())) < 0.06


def exact_reading(model: MultiTaskModel, name: str, taps: Taps, tap: int, size: tuple[int, int]) -> Tensor:
    """sum over tokens of J_n' H J_n for one image, (C, C), from the whole Jacobian."""

    def predict(tap_map: Tensor, prefix: Tensor) -> Tensor:
        maps, tokens = list(taps.maps), list(taps.prefix)
        maps[tap], tokens[tap] = tap_map, prefix
        return model.decode(Taps(tuple(maps), tuple(tokens)), name, size)[0].flatten(1)  # (K, n)

    inputs = (taps.maps[tap], taps.prefix[tap])
    prediction = predict(*inputs)
    of_map, of_prefix = torch.autograd.functional.jacobian(predict, inputs)
    jacobian = torch.cat([of_map[:, :, 0].flatten(3).transpose(2, 3), of_prefix[:, :, 0]], dim=2)  # (K, n, tokens, C)
    h = torch.stack([curvature(model.tasks[name], p) for p in prediction.T])
    return torch.einsum("kntc,nkl,lntd->cd", jacobian, h, jacobian).double()


def test_what_a_decoder_reads_is_the_gauss_newton_matrix_of_its_exact_jacobian(
    merged: MultiTaskModel, experts: list[SingleTaskModel]
) -> None:
    found = capture_all(merged, {e.task.name: e for e in experts}, TinyData(2, size=(16, 32)))
    for name in merged.tasks:
        expert = found.experts[name]
        scales = [torch.rand(48, dtype=torch.float64) + 0.5 for _ in expert.patches]
        estimates = reading(merged, name, expert, scales, 2, 150, 0, torch.device("cpu"))
        for tap in range(2):
            parts = [exact_reading(merged, name, expert.taps(torch.tensor([i])), tap, (16, 32)) for i in range(2)]
            exact = sum(parts) / 2 * torch.outer(scales[tap], scales[tap])
            assert (estimates[tap] - exact).norm() < 0.15 * exact.norm()


def test_the_metric_has_the_floor_as_its_least_eigenvalue_and_a_mean_diagonal_of_one(
    merged: MultiTaskModel, experts: list[SingleTaskModel]
) -> None:
    found = capture_all(merged, {e.task.name: e for e in experts}, TinyData(3))
    scales = {(t, i): m for t in merged.tasks for i, m in enumerate([torch.ones(48, dtype=torch.float64)] * 2)}
    metrics = decoder_metrics(merged, found, scales, torch.device("cpu"), floor=0.2)
    for metric in metrics.values():
        cost = metric.root @ metric.root
        assert float(torch.linalg.eigvalsh(cost)[0]) >= 0.2 - 1e-9
        assert float(cost.diagonal().mean()) == pytest.approx(1)
        assert torch.allclose(metric.root @ metric.inverse, torch.eye(48, dtype=torch.float64), atol=1e-8)


def test_a_decoder_that_reads_nothing_leaves_the_plain_objective(
    merged: MultiTaskModel, experts: list[SingleTaskModel], images: TinyData
) -> None:
    for decoder in merged.decoders.values():
        torch.nn.init.zeros_(cast(torch.nn.Conv2d, cast(Decoder, decoder).project).weight)
    plain, weighted = (
        realign(merged, experts, images, LinearSurgery(rank=4, objective=objective))  # type: ignore[arg-type]
        for objective in ("features", "decoder")
    )
    for name, value in plain.state_dict().items():
        assert torch.equal(value, weighted.state_dict()[name]), name


def test_the_identity_as_metric_changes_no_bit() -> None:
    moments = feature_moments(related_features())[0]
    eye = OutputMetric.of(torch.eye(8, dtype=torch.float64))
    for rank in (1, 3, None):
        plain, weighted = solve_change(moments, "a", rank, 0.01), solve_change(moments, "a", rank, 0.01, eye)
        assert torch.equal(plain.down, weighted.down)
        assert torch.equal(plain.up, weighted.up)


def problem(metric: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64) * torch.tensor([1, 5, 0.2, 1, 1, 30.0]).double()
    d = x @ torch.randn(6, len(metric), generator=generator, dtype=torch.float64) * 0.3
    return x, d + torch.randn(d.shape, generator=generator, dtype=torch.float64), torch.rand(len(metric)).double() + 0.5


def penalised(a: Tensor, x: Tensor, d: Tensor, scale: Tensor, cost: Tensor, ridge: float) -> Tensor:
    """The objective in the docstring, token by token: e' K e with a ridge measured in K too; A' is (D, C)."""
    error, weights = (d - x @ a) / scale, a * x.norm(dim=0)[:, None] / scale
    return torch.einsum("nc,cd,nd->", error, cost, error) + ridge * torch.einsum("nc,cd,nd->", weights, cost, weights)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_map_of_reduced_rank_under_a_metric_is_generalised_least_squares(rank: int) -> None:
    """Whitened by a Cholesky factor, the ridge as rows of the design: the best fit is cut by the singular values."""
    cost = positive(5)
    x, d, scale = problem(cost)
    found = reduced_rank_ridge(x.T @ x, x.T @ d, scale, rank, 0.05, metric=OutputMetric.of(cost))
    factor = torch.linalg.cholesky(cost)
    design = torch.cat([x / x.norm(dim=0), 0.05**0.5 * torch.eye(6, dtype=torch.float64)])
    wanted = torch.cat([(d / scale) @ factor, torch.zeros(6, 5, dtype=torch.float64)])
    full = torch.linalg.lstsq(design, wanted).solution
    _, _, vh = torch.linalg.svd(design @ full, full_matrices=False)
    cut = full @ vh[:rank].T @ vh[:rank]
    truth = torch.linalg.solve(factor.T, cut.T).T * scale / x.norm(dim=0)[:, None]
    assert torch.allclose((found.up @ found.down).T, truth, rtol=1e-7, atol=1e-9)


def test_long_gradient_descent_under_a_metric_ends_at_the_closed_form() -> None:
    cost, ridge = positive(5), 0.05
    x, d, scale = problem(cost)
    found = reduced_rank_ridge(x.T @ x, x.T @ d, scale, 2, ridge, metric=OutputMetric.of(cost))
    best = float(penalised((found.up @ found.down).T, x, d, scale, cost, ridge))
    generator = torch.Generator().manual_seed(1)
    down = (torch.randn(6, 2, generator=generator, dtype=torch.float64) / x.norm(dim=0)[:, None]).requires_grad_()
    up = torch.randn(2, 5, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS([down, up], max_iter=1000, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = penalised(down @ up, x, d, scale, cost, ridge)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call, arg-type]
    assert float(penalised((down @ up).detach(), x, d, scale, cost, ridge)) == pytest.approx(best, rel=1e-6)
    plain = reduced_rank_ridge(x.T @ x, x.T @ d, scale, 2, ridge)
    assert float(penalised((plain.up @ plain.down).T, x, d, scale, cost, ridge)) > 1.01 * best


def weighted(found: CalibrationFeatures, seed: int = 3) -> dict[tuple[str, int], OutputMetric]:
    moments = feature_moments(found)
    metrics = {}
    for task in ("a", "b"):
        for tap, of_tap in enumerate(moments):
            scale = output_scale(of_tap, task)
            metric = OutputMetric.of(positive(len(scale), seed + tap))
            spreads = expert_spreads(found.experts[task], tap, scale, metric)
            metrics[task, tap] = OutputMetric(metric.root, metric.inverse, spreads)
    return metrics


def cost(errors: Tensor, metric: OutputMetric) -> float:
    return float(torch.einsum("nc,cd,nd->", errors, metric.root @ metric.root, errors))


def test_held_out_errors_under_a_metric_are_those_of_maps_applied_to_held_out_tokens() -> None:
    found = deep_features()
    metrics = weighted(found)
    grid = Grid(ranks=(2, None), ridges=(0.01, 0.3), reads=("own", "all"), simple=SIMPLE)
    joint = folded_moments(found, True, precise=True)
    cells = cross_validate(joint, ["a", "b"], grid, metrics, precise=True)
    total = joint.total()
    for (task, tap), candidates in cells.items():
        metric = metrics[task, tap]
        scale = output_scale(joint.tap(total, tap), task)
        groups = tokens(found, tap, task)
        mass = [12 * 15 / len(g) for g in groups]
        spread = sum(m * cost((g - g.mean(0)) / scale, metric) for m, g in zip(mass, groups, strict=True))
        for candidate in (c for c in candidates if c.kind == "linear"):
            error = 0.0
            for index, (start, end) in enumerate(fold_bounds(12)):
                rest = [total[0] - joint.folds[index][0]]
                train = joint.tap(rest, tap, candidate.reads)
                xx, own = train.pooled_xx(), train.own(task)
                wanted = train.pooled_xy(task) - xx[:, own]
                rank = len(scale) if candidate.rank is None else candidate.rank
                change = reduced_rank_ridge(xx, wanted, scale, rank, candidate.ridge, metric=metric)
                fold = found.subset(slice(start, end))
                read = tokens(fold, tap if candidate.reads == "own" else None, None)
                pairs = zip(mass, train.groups, read, tokens(fold, tap, None), tokens(fold, tap, task), strict=True)
                for m, group, x, z, y in pairs:
                    offset = group.mean_y(task) - group.mean_x()[own] - change.up @ (change.down @ group.mean_x())
                    error += m * cost((z + x @ change.down.T @ change.up.T + offset - y) / scale, metric)
            assert candidate.explained == pytest.approx(1 - error / spread, rel=1e-4, abs=1e-5)
        unaligned = sum(
            m * cost((x - y) / scale, metric) for m, x, y in zip(mass, tokens(found, tap, None), groups, strict=True)
        )
        identity = next(c for c in candidates if c.kind == "identity")
        assert identity.explained == pytest.approx(1 - unaligned / spread, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", SIMPLE)
def test_a_metric_of_the_identity_judges_simple_aligners_as_no_metric_does(kind: str) -> None:
    found = deep_features()
    folded = folded_moments(found, False, precise=True)
    grid = Grid(reads=(), simple=(kind,))
    plain = cross_validate(folded, ["a"], grid)
    metrics = {}
    for tap, channels in enumerate((6, 8)):
        eye = OutputMetric.of(torch.eye(channels, dtype=torch.float64))
        scale = output_scale(folded.of_taps()[tap], "a")
        metrics["a", tap] = OutputMetric(eye.root, eye.inverse, expert_spreads(found.experts["a"], tap, scale, eye))
    for cell, (candidate,) in cross_validate(folded, ["a"], grid, metrics).items():
        assert candidate.explained == pytest.approx(plain[cell][0].explained, rel=1e-5)


def reading_error(model: MultiTaskModel, found: CalibrationFeatures, task: str, metrics: Metrics) -> float:
    """What the aligned features' errors cost, over all taps and tokens, a prefix token as much as all patches."""
    aligner, total = model.aligner(task), 0.0
    assert aligner is not None
    merged, expert = found.merged, found.experts[task]
    with torch.inference_mode():
        patches, prefix = aligner.tokens(list(merged.patches), list(merged.prefix), merged.grid)
    for tap, moments in enumerate(feature_moments(found)):
        scale = output_scale(moments, task)
        for ours, theirs, mass in (
            (patches[tap], expert.patches[tap], 1.0),
            (prefix[tap], expert.prefix[tap], float(patches[tap].shape[1])),
        ):
            total += mass * cost((ours - theirs).double().flatten(0, 1) / scale, metrics[task, tap])
    return total


def test_a_low_rank_is_spent_on_what_the_decoder_reads(merged: MultiTaskModel, experts: list[SingleTaskModel]) -> None:
    images = TinyData(24)
    found = capture_all(merged, {e.task.name: e for e in experts}, images)
    scales = {(t, i): output_scale(m, t) for t in merged.tasks for i, m in enumerate(feature_moments(found))}
    metrics = decoder_metrics(merged, found, scales, torch.device("cpu"))
    plain, weighted = (
        realign(merged, experts, images, LinearSurgery(rank=4, ridge=1e-5, objective=objective), found)  # type: ignore[arg-type]
        for objective in ("features", "decoder")
    )
    for task in merged.tasks:
        ours, theirs = (reading_error(model, found, task, metrics) for model in (weighted, plain))
        assert ours < 0.97 * theirs


@pytest.mark.parametrize("method", [LinearSurgery(rank=4, objective="decoder"), Auto(objective="decoder")], ids=str)
def test_predictions_come_nearer_to_the_experts(
    merged: MultiTaskModel, experts: list[SingleTaskModel], method: LinearSurgery | Auto
) -> None:
    images = TinyData(24)
    aligned = realign(merged, experts, images, method)
    pictures = torch.stack([images[i].image for i in range(len(images))])
    with torch.inference_mode():
        for expert in experts:
            error, before = (
                (m(pictures)[expert.task.name] - expert(pictures)).square().mean() for m in (aligned, merged)
            )
            assert error < before


@pytest.mark.parametrize("count", [1, 2])
def test_few_images_and_constant_channels_give_finite_maps(
    merged: MultiTaskModel, experts: list[SingleTaskModel], count: int
) -> None:
    for model in (merged, *experts):
        with torch.no_grad():
            model.encoder.get_parameter("vit.blocks.3.mlp.fc2.weight")[:5] = 0
    method = LinearSurgery(rank="auto", reads="auto", ridge="auto", objective="decoder")
    for each in (method, LinearSurgery(rank=8, objective="decoder")):
        aligned = realign(merged, experts, TinyData(count), each)
        assert all(torch.isfinite(v).all() for v in aligned.state_dict().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"objective": "loss"}, "'features' or 'decoder', got 'loss'"), ({"floor": 0.0}, "above 0 and at most 1; got 0")],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    for method in (LinearSurgery, Auto):
        with pytest.raises(SimoError, match=message):
            method(**options)  # type: ignore[arg-type]


def test_a_broken_metric_is_refused() -> None:
    with pytest.raises(SimoError, match="NaN or infinity"):
        OutputMetric.of(torch.full((2, 2), torch.nan, dtype=torch.float64))
    with pytest.raises(SimoError, match="eigenvalue"):
        OutputMetric.of(-torch.eye(2, dtype=torch.float64))


def test_error_scales_are_those_of_the_plain_objective() -> None:
    found = related_features()
    deviation = found.experts["a"].patches[0].flatten(0, 1).double().std(0, correction=0)
    assert torch.allclose(output_scale(feature_moments(found)[0], "a"), error_scale(deviation))
