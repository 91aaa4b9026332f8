"""Merging through singular vectors: TSV-Merge, Iso-C and Iso-CTS against their formulas with LAPACK's own SVD."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.merging import Parameter
from simo_merge.merging.spectral.iso import IsoC, IsoCts
from simo_merge.merging.spectral.svd import MatrixMethod, svd, whiten
from simo_merge.merging.spectral.tsv import Tsvm
from simo_merge.merging.spectral.wudi import Wudi

METHODS = (Tsvm(), IsoC(), IsoCts())
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,)])
@pytest.mark.parametrize("method", [*METHODS, Wudi()], ids=lambda m: m.name)
def test_an_empty_tensor_is_the_bases(method: MatrixMethod, shape: tuple[int, ...]) -> None:
    empty = torch.zeros(shape)
    assert torch.equal(method.merge(Parameter("blocks.0.weight", empty, (empty, empty))), empty)


def merged(method: MatrixMethod, base: Tensor, vectors: Tensor) -> Tensor:
    return method.merge(Parameter("blocks.0.weight", base, tuple(base + vector for vector in vectors)))


def random_vectors(count: int, rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(count, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthonormal(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def slow_tsv(vectors: Tensor) -> Tensor:
    kept = min(vectors.shape[1:]) // len(vectors)
    us, ss, vs = [], [], []
    for vector in vectors:
        u, s, vh = torch.linalg.svd(vector, full_matrices=False)
        for i in range(kept):
            us.append(u[:, i])
            ss.append(s[i])
            vs.append(vh[i])
    return orthonormal(torch.stack(us, dim=1)) @ torch.diag(torch.stack(ss)) @ orthonormal(torch.stack(vs))


def slow_iso_c(vectors: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(sum(vectors), full_matrices=False)
    return u @ torch.diag(torch.full_like(s, float(s.mean()))) @ vh


def slow_iso_cts(vectors: Tensor, fraction: float) -> Tensor:
    count, rank = len(vectors), min(vectors.shape[1:])
    own = round((rank - int(rank * fraction)) / count)
    common = rank - own * count
    u, s, vh = torch.linalg.svd(sum(vectors), full_matrices=False)
    u, s, vh = u[:, :common], s[:common], vh[:common]
    us, ss, vhs = [], [], []
    for vector in vectors:
        ut, s_t, vht = torch.linalg.svd(vector - u @ u.T @ vector, full_matrices=False)
        us.append(ut[:, :own])
        ss.append(s_t[:own])
        vhs.append(vht[:own])
    strength = torch.cat([*ss, s]).mean()
    return strength * orthonormal(torch.cat([*us, u], 1)) @ orthonormal(torch.cat([*vhs, vh], 0))


# -- the decomposition ------------------------------------------------------------------------------------------


@given(shapes, st.integers(0, 9))
def test_the_decomposition_gives_the_matrix_back_from_orthonormal_vectors(shape: tuple[int, int], seed: int) -> None:
    matrix = random_vectors(1, *shape, seed)[0]
    u, s, vh = svd(matrix)
    assert torch.allclose(u @ torch.diag(s) @ vh, matrix, atol=1e-9)
    assert torch.allclose(s, torch.linalg.svdvals(matrix), atol=1e-7 * float(s.max()))
    assert torch.allclose(u.T @ u, torch.eye(len(s), dtype=u.dtype), atol=1e-9)
    assert torch.allclose(vh @ vh.T, torch.eye(len(s), dtype=u.dtype), atol=1e-5)


def test_singular_values_of_zero_have_singular_vectors_of_zero() -> None:
    left, right = random_vectors(1, 6, 2)[0], random_vectors(1, 2, 8, seed=1)[0]
    u, s, vh = svd(left @ right)
    assert (s > 0).sum() == 2
    assert not u[:, 2:].any()
    assert not vh[2:].any()
    assert torch.allclose(u @ torch.diag(s) @ vh, left @ right, atol=1e-10)


def test_values_too_small_to_be_squared_in_float32_are_decomposed() -> None:
    matrix = random_vectors(1, 5, 4)[0] * 1e-30
    assert torch.allclose(svd(matrix.float()).s / 1e-30, torch.linalg.svdvals(matrix) / 1e-30, rtol=1e-5)


def test_whitening_gives_the_nearest_orthonormal_columns() -> None:
    vectors = random_vectors(1, 8, 3)[0]
    found = whiten(vectors)
    assert torch.allclose(found, orthonormal(vectors), atol=1e-9)
    for seed in range(20):
        other = orthonormal(found + 0.1 * random_vectors(1, 8, 3, seed)[0])
        assert torch.linalg.norm(other - vectors) >= torch.linalg.norm(found - vectors)


# -- the formulas -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (12, 7), (7, 12), (24, 9)])
@pytest.mark.parametrize("count", [2, 3])
def test_the_methods_follow_their_formulas(rows: int, columns: int, count: int) -> None:
    vectors = random_vectors(count, rows, columns)
    base = random_vectors(1, rows, columns, seed=7)[0]
    for method, expected in [
        (Tsvm(0.7), slow_tsv(vectors)),
        (IsoC(0.7), slow_iso_c(vectors)),
        (IsoCts(0.7, 0.8), slow_iso_cts(vectors, 0.8)),
        (IsoCts(0.7, 0.4), slow_iso_cts(vectors, 0.4)),
    ]:
        assert torch.allclose(merged(method, base, vectors), base + 0.7 * expected, atol=1e-6), method


def test_float32_gives_what_float64_gives() -> None:
    vectors, base = random_vectors(3, 16, 12), random_vectors(1, 16, 12, seed=7)[0]
    for method in METHODS:
        narrow = merged(method, base.float(), vectors.float())
        assert narrow.dtype == torch.float32
        assert torch.allclose(narrow.double(), merged(method, base, vectors), atol=1e-4)


def test_the_spectrum_of_an_isotropic_merge_is_flat() -> None:
    vectors = random_vectors(3, 10, 14)
    for method in (IsoC(), IsoCts()):
        values = torch.linalg.svdvals(method.merge_matrix(vectors))
        assert torch.allclose(values, values.mean().expand_as(values), rtol=1e-5)


def test_only_common_directions_is_iso_c() -> None:
    vectors = random_vectors(3, 8, 6)
    assert torch.allclose(IsoCts(common_fraction=1.0).merge_matrix(vectors), IsoC().merge_matrix(vectors), atol=1e-8)


# -- identities -------------------------------------------------------------------------------------------------


def test_orthogonal_tasks_of_low_rank_all_survive_tsv_merge() -> None:
    basis = torch.linalg.qr(random_vectors(1, 9, 9)[0])[0]
    vectors = torch.stack([(t + 1.0) * basis[:, 3 * t : 3 * t + 3] @ basis[:, 3 * t : 3 * t + 3].T for t in range(3)])
    assert torch.allclose(Tsvm().merge_matrix(vectors), vectors.sum(0), atol=1e-8)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_equal_experts_of_low_rank_come_back_from_tsv_merge(count: int) -> None:
    low_rank = random_vectors(1, 8, 2)[0] @ random_vectors(1, 2, 12, seed=1)[0]
    found = Tsvm().merge_matrix(low_rank.expand(count, -1, -1))
    assert torch.allclose(found, low_rank, atol=1e-8)


def test_one_expert_comes_back_from_tsv_merge() -> None:
    vectors = random_vectors(1, 8, 12)
    assert torch.allclose(Tsvm().merge_matrix(vectors), vectors[0], atol=1e-6)


@given(st.permutations(range(4)), shapes)
def test_the_order_of_the_experts_changes_nothing(order: list[int], shape: tuple[int, int]) -> None:
    vectors = random_vectors(4, *shape)
    for method in METHODS:
        assert torch.allclose(method.merge_matrix(vectors[order]), method.merge_matrix(vectors), atol=1e-5), method


@given(shapes, st.sampled_from([1e-20, 1e-3, 1.0, 1e6]))
def test_task_vectors_and_their_merge_scale_together(shape: tuple[int, int], size: float) -> None:
    vectors = random_vectors(3, *shape)
    for method in METHODS:
        assert torch.allclose(method.merge_matrix(vectors * size) / size, method.merge_matrix(vectors), atol=1e-5)


@given(shapes)
def test_transposed_matrices_merge_to_the_transpose(shape: tuple[int, int]) -> None:
    vectors = random_vectors(2, *shape)
    for method in (Tsvm(), IsoC()):
        assert torch.allclose(method.merge_matrix(vectors.mT), method.merge_matrix(vectors).T, atol=1e-6)


# -- what is no matrix, and what is degenerate ------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (5,), (1, 5, 4), (4, 3, 2, 2)])
def test_what_is_no_matrix_is_averaged(shape: tuple[int, ...]) -> None:
    base, vectors = torch.randn(shape), torch.randn(3, *shape)
    for method in (Tsvm(0.5), IsoC(0.5), IsoCts(0.5)):
        assert torch.allclose(merged(method, base, vectors), base + 0.5 * vectors.mean(0), atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (1, 4), (4, 1), (1, 1)])
def test_task_vectors_of_zeros_give_the_base(shape: tuple[int, int]) -> None:
    base = torch.randn(shape)
    for method in METHODS:
        assert torch.equal(merged(method, base, torch.zeros(3, *shape)), base)


def test_a_task_vector_of_zeros_among_others_gives_something_finite() -> None:
    vectors = torch.randn(3, 8, 6)
    vectors[1] = 0
    for method in METHODS:
        assert torch.isfinite(merged(method, torch.randn(8, 6), vectors)).all()


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (2, 2)])
def test_more_experts_than_directions_still_merge(shape: tuple[int, int]) -> None:
    vectors = torch.rand(4, *shape) + 0.5
    for method in METHODS:
        found = method.merge_matrix(vectors)
        assert torch.isfinite(found).all()
        assert found.abs().sum() > 0


def test_the_base_is_not_changed() -> None:
    base, vectors = torch.randn(6, 4), torch.randn(2, 6, 4)
    before = base.clone()
    for method in METHODS:
        merged(method, base, vectors)
    assert torch.equal(base, before)


# -- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Tsvm, IsoC, IsoCts])
@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_not_finite_is_refused(method: type[Tsvm], scale: float) -> None:
    with pytest.raises(SimoError, match=f"{method.name} must be a finite number, got {scale}"):
        method(scale)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_a_common_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(SimoError, match="common fraction of iso-cts"):
        IsoCts(common_fraction=fraction)


def test_the_options_survive_json() -> None:
    for method in (Tsvm(0.5), IsoC(1.3), IsoCts(1.1, 0.6)):
        assert type(method)(**json.loads(json.dumps(method.parameters()))) == method
