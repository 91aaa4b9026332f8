"""Every decoder along every task vector: both ends are known, and what lies between is measured by hand."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

from simo_merge import SimoError
from simo_merge.affinity import LambdaSweep, lambda_sweep
from simo_merge.affinity.transfer import relative_gain
from simo_merge.models import SingleTaskModel
from simo_merge.scoring import score
from simo_merge.weights import Base
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData, tiny_base, tiny_expert

TASKS = (SEGMENTATION, DEPTH, NORMALS)


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


@pytest.fixture(scope="module")
def experts(base: Base) -> list[SingleTaskModel]:
    return [tiny_expert(task, base, seed) for seed, task in enumerate(TASKS, start=1)]


@pytest.fixture(scope="module")
def labelled() -> TinyData:
    return TinyData(4, TASKS, seed=1)


@pytest.fixture(scope="module")
def sweep(base: Base, experts: list[SingleTaskModel], labelled: TinyData) -> LambdaSweep:
    return lambda_sweep(experts, base, labelled, (0.0, 1.0, 0.5, 1.4))


def measured(expert: SingleTaskModel, weights: dict[str, torch.Tensor], labelled: TinyData) -> float:
    model = copy.deepcopy(expert)
    model.encoder.vit.load_state_dict(weights)
    return score(model, labelled)[expert.task.name][expert.task.primary]


def test_at_zero_every_decoder_reads_the_base_and_at_one_the_expert(
    sweep: LambdaSweep, base: Base, experts: list[SingleTaskModel], labelled: TinyData
) -> None:
    assert sweep.lambdas == (0.0, 0.5, 1.0, 1.4)
    for t, target in enumerate(experts):
        on_base = measured(target, base.vit.state_dict(), labelled)
        assert float(sweep.base[t]) == pytest.approx(on_base)
        own = score(target, labelled)[target.task.name][target.task.primary]
        assert float(sweep.experts[t]) == pytest.approx(own)
        for s, source in enumerate(experts):
            assert float(sweep.metrics[s, 0, t]) == pytest.approx(on_base)
            there = measured(target, source.encoder.vit.state_dict(), labelled)
            assert float(sweep.metrics[s, 2, t]) == pytest.approx(there)
        assert float(sweep.delta[t, 2, t]) == 0
        assert float(sweep.normalised[t, 2, t]) == 1


@pytest.mark.parametrize(("index", "lam"), [(1, 0.5), (3, 1.4)])
def test_between_and_beyond_the_encoder_is_the_base_plus_a_part_of_one_task_vector(
    sweep: LambdaSweep, base: Base, experts: list[SingleTaskModel], labelled: TinyData, index: int, lam: float
) -> None:
    start, end = base.vit.state_dict(), experts[0].encoder.vit.state_dict()
    weights = {name: start[name] + lam * (end[name] - start[name]) for name in start}
    for t, target in enumerate(experts):
        assert float(sweep.metrics[0, index, t]) == pytest.approx(measured(target, weights, labelled), rel=1e-4)
    assert sweep.at("segmentation", lam, "normals") == float(sweep.metrics[0, index, 2])


def test_a_sweep_comes_back_from_json_as_it_was(sweep: LambdaSweep) -> None:
    record = json.loads(json.dumps(sweep.to_json(), allow_nan=False))
    found = LambdaSweep.from_json(record)
    assert torch.equal(found.metrics, sweep.metrics)
    assert torch.equal(found.delta, sweep.delta)
    assert (found.tasks, found.lambdas, found.names) == (sweep.tasks, sweep.lambdas, sweep.names)
    assert (found.data, found.split, found.images) == ("tiny", "val", 4)
    with pytest.raises(SimoError, match="no lambda sweep: KeyError 'lambdas'"):
        LambdaSweep.from_json({key: value for key, value in record.items() if key != "lambdas"})


def by_hand(metrics: list[list[list[float]]], higher: tuple[bool, bool]) -> LambdaSweep:
    return LambdaSweep(
        ("a", "b"),
        (0.0, 0.5, 1.0),
        torch.tensor(metrics, dtype=torch.float64),
        experts=torch.tensor([0.8, 2.0], dtype=torch.float64),
        base=torch.tensor([0.4, 4.0], dtype=torch.float64),
        names=("miou", "abs"),
        higher_is_better=higher,
    )


def test_the_best_gain_is_in_points_of_delta_over_the_base_and_never_negative() -> None:
    sweep = by_hand(
        [[[0.4, 4.0], [0.6, 2.5], [0.8, 5.0]], [[0.4, 4.0], [0.2, math.nan], [0.1, 2.0]]],
        higher=(True, False),
    )
    assert sweep.delta[0, 1].tolist() == pytest.approx([-25.0, -20.0])
    assert sweep.best_gain().flatten().tolist() == pytest.approx([50.0, 30.0, 0.0, 50.0])


def test_a_task_without_labels_has_no_curve(base: Base, experts: list[SingleTaskModel]) -> None:
    found = lambda_sweep(experts, base, TinyData(2, (DEPTH,)), (1.0,))
    assert found.metrics[..., 0].isnan().all()
    assert found.metrics[..., 1].isfinite().all()
    assert found.best_gain()[:, 2].isnan().all()


def test_a_gain_without_meaning_is_nan() -> None:
    metrics, own = torch.tensor([0.0, 0.0, 0.5, 0.5]), torch.tensor([1.0, 1.0, 0.0, math.nan])
    found = relative_gain(metrics, own, (True, False, True, True))
    assert found[0] == -100
    assert found[1:].isnan().all()


@pytest.mark.parametrize("lambdas", [(), (0.5, 0.5), (math.nan,)])
def test_lambdas_that_are_none_are_refused(
    base: Base, experts: list[SingleTaskModel], labelled: TinyData, lambdas: tuple[float, ...]
) -> None:
    with pytest.raises(SimoError, match="expected one finite value or more"):
        lambda_sweep(experts, base, labelled, lambdas)


def test_a_sweep_without_labels_or_on_the_test_split_is_refused(base: Base, experts: list[SingleTaskModel]) -> None:
    with pytest.raises(SimoError, match="give it labelled images"):
        lambda_sweep(experts, base)
    with pytest.raises(SimoError, match="does not look at the labels"):
        lambda_sweep(experts, base, TinyData(2, TASKS, split="test"))


def test_a_point_that_was_not_measured_is_no_point(sweep: LambdaSweep) -> None:
    with pytest.raises(SimoError, match=r"has no depth, 0\.3, depth"):
        sweep.at("depth", 0.3, "depth")
