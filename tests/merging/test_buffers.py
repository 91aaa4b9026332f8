"""Running statistics of normalisation layers are those of the experts' features together."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from simo_merge.merging.buffers import is_running_statistic, merge_buffers, merge_running_statistics


def test_the_statistics_are_those_of_as_many_features_of_every_expert() -> None:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(50, 4, generator=generator).double() * (1 + t) + 3 * t for t in range(3)]
    means = torch.stack([f.mean(0) for f in features])
    variances = torch.stack([f.var(0, correction=0) for f in features])
    mean, variance = merge_running_statistics(means, variances)
    assert torch.allclose(mean, torch.cat(features).mean(0))
    assert torch.allclose(variance, torch.cat(features).var(0, correction=0))


@st.composite
def statistics(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    count, channels = draw(st.integers(1, 4)), draw(st.integers(1, 4))

    def numbers(low: float) -> Tensor:
        size = count * channels
        values = draw(st.lists(st.floats(low, 100, width=32), min_size=size, max_size=size))
        return torch.tensor(values).view(count, channels)

    return numbers(-100), numbers(0)


@given(statistics())
def test_the_variance_is_never_below_the_mean_of_the_variances(given: tuple[Tensor, Tensor]) -> None:
    means, variances = given
    mean, variance = merge_running_statistics(means, variances)
    assert (variance >= variances.double().mean(0).float()).all()
    assert torch.allclose(mean, means.double().mean(0).float())


@given(statistics())
def test_equal_experts_keep_their_statistics(given: tuple[Tensor, Tensor]) -> None:
    mean, variance = given[0][:1], given[1][:1]
    found = merge_running_statistics(mean.repeat(4, 1), variance.repeat(4, 1))
    assert torch.allclose(found[0], mean[0])
    assert torch.allclose(found[1], variance[0])


def norms(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2))
    for _ in range(1 + seed):
        model(torch.randn(8, 3) + seed)
    return dict(model.state_dict())


def test_every_running_statistic_of_state_dicts_is_merged_and_nothing_else() -> None:
    experts = [norms(seed) for seed in range(3)]
    merged = merge_buffers(experts)
    assert set(merged) == {
        f"{i}.{name}" for i in (0, 2) for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    for i in (0, 2):
        means = torch.stack([expert[f"{i}.running_mean"] for expert in experts])
        variances = torch.stack([expert[f"{i}.running_var"] for expert in experts])
        mean, variance = merge_running_statistics(means, variances)
        assert torch.equal(merged[f"{i}.running_mean"], mean)
        assert torch.equal(merged[f"{i}.running_var"], variance)
        assert merged[f"{i}.num_batches_tracked"] == 6
        assert merged[f"{i}.num_batches_tracked"].dtype == torch.int64


def test_a_layer_that_is_the_whole_model_has_names_without_a_dot() -> None:
    experts = [dict(nn.BatchNorm1d(2).state_dict()) for _ in range(2)]
    assert set(merge_buffers(experts)) == {"running_mean", "running_var", "num_batches_tracked"}


def test_statistics_of_which_one_is_missing_are_averaged() -> None:
    experts = [{"norm.running_mean": torch.tensor([float(t)])} for t in range(3)]
    assert merge_buffers(experts)["norm.running_mean"].tolist() == [1.0]
    experts = [{"norm.running_var": torch.tensor([float(t)]).half()} for t in range(3)]
    assert merge_buffers(experts)["norm.running_var"].tolist() == [1.0]
    assert merge_buffers(experts)["norm.running_var"].dtype == torch.float16


def test_models_without_such_layers_have_nothing_to_merge() -> None:
    assert merge_buffers([{"weight": torch.ones(2)}] * 2) == {}
    assert not is_running_statistic("blocks.0.running_mean_head.weight")
    assert is_running_statistic("norm.running_var")
