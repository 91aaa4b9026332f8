"""Measures of task vectors against plain versions, and the cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from simo_merge.affinity.weights import Overlap, SubspaceOverlap, overlaps, subspace_overlaps
from simo_merge.merging.passes import Sources

State = dict[str, Tensor]
BLOCKS, WIDTH = 3, 12


def state(seed: int, size: float = 1.0) -> State:
    """The tensors of a small ViT under timm's names."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, WIDTH), "patch_embed.proj.weight": (WIDTH, 3, 2, 2)}
    for i in range(BLOCKS):
        shapes[f"blocks.{i}.attn.qkv.weight"] = (3 * WIDTH, WIDTH)
        shapes[f"blocks.{i}.attn.qkv.bias"] = (3 * WIDTH,)
        shapes[f"blocks.{i}.mlp.fc1.weight"] = (WIDTH, 2 * WIDTH)
    shapes["norm.weight"] = (WIDTH,)
    return {name: size * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def plus(base: State, vector: State) -> State:
    return {name: base[name] + vector[name] for name in base}


def sources(vectors: list[State]) -> Sources:
    base = state(100)
    return Sources(base, [plus(base, vector) for vector in vectors], workers=1)


def flat(vector: State, part: str = "") -> np.ndarray:
    return np.concatenate([v.double().numpy().ravel() for name, v in sorted(vector.items()) if part in name])


def every_measure(overlap: Overlap) -> dict[str, Tensor]:
    names = ("cosine", "sign_agreement", "energy_overlap", "norm_ratio")
    return {name: getattr(overlap, name)() for name in names}


def test_equal_task_vectors_give_one_by_every_measure_in_every_layer() -> None:
    whole, profile = overlaps(sources([state(1), state(1)]))
    for part in (whole, *profile.values()):
        for name, values in every_measure(part).items():
            assert values == pytest.approx(1.0, abs=1e-12), name
    angles, layers = subspace_overlaps(sources([state(1), state(1)]), rank=3)
    for found in (angles, *layers.values()):
        assert found.shared_outputs() == pytest.approx(1.0, abs=1e-5)
        assert found.shared_inputs() == pytest.approx(1.0, abs=1e-5)
        assert found.freedom() == pytest.approx(-1.0, abs=1e-4)  # what is shared adds up: all of it interferes


def test_task_vectors_that_change_other_entries_give_zero() -> None:
    one, other = state(1), state(2)
    for name in one:
        rows, columns = one[name].shape[0] // 2, (one[name].shape[-1] // 2)
        if one[name].ndim == 2:
            one[name][rows:], one[name][:, columns:] = 0, 0
            other[name][:rows], other[name][:, :columns] = 0, 0
        else:
            one[name].view(-1)[::2], other[name].view(-1)[1::2] = 0, 0
    base = {name: torch.zeros_like(value) for name, value in one.items()}
    given = Sources(base, [one, other], workers=1)
    whole, profile = overlaps(given)
    for part in (whole, *profile.values()):
        for values in (part.cosine(), part.sign_agreement(), part.energy_overlap()):
            assert values.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    angles, _ = subspace_overlaps(given, rank=4)
    for values in (angles.shared_outputs(), angles.shared_inputs(), angles.freedom()):
        assert float(values[0, 1]) == pytest.approx(0, abs=1e-12)


def test_orthogonal_task_vectors_give_zero_though_they_change_the_same_entries() -> None:
    one, other = state(1), state(2)
    for name in one:
        other[name] -= one[name] * (one[name] * other[name]).sum() / one[name].square().sum()
    whole, _ = overlaps(sources([one, other]))
    assert float(whole.cosine()[0, 1]) == pytest.approx(0, abs=1e-6)
    assert float(whole.sign_agreement()[0, 1]) == pytest.approx(0, abs=1e-6)
    assert float(whole.energy_overlap()[0, 1]) > 0.5


@pytest.mark.parametrize("part", ["", "blocks.1.", "attn.qkv"])
def test_sums_over_all_a_block_and_a_kind_of_module_are_those_of_flattened_vectors(part: str) -> None:
    vectors = [state(1), state(2, 0.5), state(3, 2.0)]
    whole, profile = overlaps(sources(vectors))
    found = {"": whole, "blocks.1.": profile.get("block 1"), "attn.qkv": profile.get("module attn.qkv")}[part]
    assert found is not None
    base = state(100)
    stored = [{name: (base[name] + v[name]) - base[name] for name in v} for v in vectors]  # float32 rounds
    for s in range(3):
        for t in range(3):
            a, b = flat(stored[s], part), flat(stored[t], part)
            common = np.abs(a) * np.abs(b)
            share = common[np.sign(a) == np.sign(b)].sum() / common.sum()
            norms = np.linalg.norm(a), np.linalg.norm(b)
            assert float(found.cosine()[s, t]) == pytest.approx(a @ b / norms[0] / norms[1], abs=1e-10)
            assert float(found.sign_agreement()[s, t]) == pytest.approx(2 * share - 1, abs=1e-10)
            assert float(found.energy_overlap()[s, t]) == pytest.approx(common.sum() / norms[0] / norms[1])
            assert float(found.norm_ratio()[s, t]) == pytest.approx(min(norms) / max(norms))
    product = found.sign_agreement() * found.energy_overlap()
    assert torch.allclose(found.cosine(), product, atol=1e-12)


def test_subspaces_are_compared_as_singular_vectors_written_out_say() -> None:
    vectors, rank = [state(1), state(2)], 3
    found, profile = subspace_overlaps(sources(vectors), rank)
    left, right, interference, energy = [], [], 0.0, 0.0
    for name in [n for n in vectors[0] if vectors[0][n].ndim == 2]:
        parts = [np.linalg.svd(v[name].double().numpy(), full_matrices=False) for v in vectors]
        us, ss, vs = zip(*[(u[:, :rank], s[:rank], vh[:rank].T) for u, s, vh in parts], strict=True)
        left.append(np.mean(np.linalg.svd(us[0].T @ us[1], compute_uv=False) ** 2))
        right.append(np.mean(np.linalg.svd(vs[0].T @ vs[1], compute_uv=False) ** 2))
        u, s, v = np.hstack(us), np.concatenate(ss), np.hstack(vs)
        crossed = (u.T @ u - np.eye(2 * rank)) @ np.diag(s) @ (v.T @ v - np.eye(2 * rank))
        interference, energy = interference + np.abs(crossed).sum(), energy + s.sum()
    assert float(found.shared_outputs()[0, 1]) == pytest.approx(np.mean(left), abs=1e-4)
    assert float(found.shared_inputs()[1, 0]) == pytest.approx(np.mean(right), abs=1e-4)
    assert float(found.freedom()[0, 1]) == pytest.approx(-interference / energy, abs=1e-4)
    assert "embeddings" not in profile  # no matrices there
    assert float(profile["block 2"].matrices[0, 1]) == 2


def test_a_conflict_planted_in_one_block_is_found_in_that_block_alone() -> None:
    one = state(1)
    other = {name: -value if "blocks.1.mlp" in name else value.clone() for name, value in one.items()}
    whole, profile = overlaps(sources([one, other]))
    by_layer = {name: float(part.cosine()[0, 1]) for name, part in profile.items()}
    assert min(by_layer, key=lambda name: by_layer[name]) == "block 1"
    assert all(
        value == pytest.approx(1) for name, value in by_layer.items() if name not in ("block 1", "module mlp.fc1")
    )
    assert 0 < float(whole.cosine()[0, 1]) < 1
    assert float(profile["block 1"].sign_agreement()[0, 1]) < float(whole.sign_agreement()[0, 1])


def test_profiles_go_by_depth_and_then_by_kind_of_module() -> None:
    _, profile = overlaps(sources([state(1), state(2)]))
    depth = ["embeddings", "block 0", "block 1", "block 2", "final"]
    kinds = ["attn.qkv", "cls_token", "mlp.fc1", "norm", "patch_embed.proj"]
    assert list(profile) == depth + [f"module {kind}" for kind in kinds]


def test_an_expert_that_is_the_base_has_no_direction() -> None:
    still = {name: torch.zeros_like(value) for name, value in state(1).items()}
    whole, _ = overlaps(sources([state(1), still]))
    assert whole.cosine()[0, 1].isnan()
    assert whole.sign_agreement()[0, 1].isnan()
    assert float(whole.norm_ratio()[0, 1]) == 0
    angles, _ = subspace_overlaps(sources([state(1), still]), rank=2)
    assert angles.shared_outputs()[0, 1].isnan()
    assert float(angles.shared_outputs()[0, 0]) == pytest.approx(1, abs=1e-5)


def test_a_matrix_of_lower_rank_shares_what_it_has() -> None:
    column, row = torch.randn(8, 1, dtype=torch.float64), torch.randn(1, 6, dtype=torch.float64)
    thin = column @ row
    wide = thin * 10 + 0.01 * torch.randn(8, 6, dtype=torch.float64)
    found = SubspaceOverlap.of(torch.stack([thin, wide]), rank=3)
    assert float(found.shared_outputs()[0, 0]) == pytest.approx(1)
    assert float(found.shared_outputs()[0, 1]) == pytest.approx(3**-0.5, abs=1e-3)  # one shared of 1 and of 3
