"""Learned coefficients: known optima, how they behave, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.merging import merge
from simo_merge.merging.learned.adamerging import AdaMerging
from simo_merge.merging.learned.expert_taps import ExpertTaps
from simo_merge.merging.learned.fitting import schedule
from simo_merge.models import SingleTaskModel
from simo_merge.tasks import Normals, Segmentation
from simo_merge.weights import Base
from tests.merging.learned.learning import ALL, given, losses, value, with_vectors
from tests.tiny import DEPTH, NORMALS, TinyData, regression, state_of, tiny_expert

# -- known optima -----------------------------------------------------------------------------------------------


def test_agreement_with_one_expert_finds_coefficient_1(base: Base, images: TinyData) -> None:
    only = (tiny_expert(DEPTH, base, 1, shift=0.05),)
    learned = AdaMerging(granularity="task", steps=60, lr=0.05, batch_size=5).observe(given(base, only, images))
    assert value(learned, "all")[0] == pytest.approx(1, abs=0.03)
    assert learned.losses[-1] < 0.01 * learned.losses[0]


def test_between_an_expert_and_the_base_lies_the_coefficient_that_a_grid_search_finds(
    base: Base, images: TinyData
) -> None:
    expert, idle = tiny_expert(DEPTH, base, 1, shift=0.02), tiny_expert(NORMALS, base, 2, shift=0.0)
    data = given(base, (expert, idle), images)
    method = AdaMerging(granularity="task", steps=60, lr=0.03, batch_size=5)
    coefficient, free = value(method.observe(data), "all")
    assert free == pytest.approx(method.initial)  # the base's own task vector is zero

    def loss(scale: float) -> float:
        encoder = copy.deepcopy(expert.encoder)
        for name, tensor in encoder.vit.state_dict().items():
            tensor.copy_(torch.lerp(base.vit.state_dict()[name], expert.encoder.vit.state_dict()[name], scale))
        return float(losses("features", data, [0, 1, 2, 3, 4], encoder).sum())

    best = min((step / 20 for step in range(21)), key=loss)
    assert 0 < best < 1
    assert coefficient == pytest.approx(best, abs=0.05)


def test_equal_experts_share_every_layer_among_them(base: Base, images: TinyData) -> None:
    expert = tiny_expert(DEPTH, base, 1, shift=0.05)
    twins = (expert, replace_task(expert, NORMALS, base))
    learned = AdaMerging(steps=50, lr=0.05, batch_size=5).observe(given(base, twins, images))
    for layer in ("embeddings", "block 0", "block 1", "block 2", "block 3"):
        assert sum(value(learned, layer)) == pytest.approx(1, abs=0.1), layer
    assert value(learned, "final") == pytest.approx([0.3, 0.3])  # after the last tap


def replace_task(expert: SingleTaskModel, task: Normals, base: Base) -> SingleTaskModel:
    other = tiny_expert(task, base, 9)
    other.encoder = copy.deepcopy(expert.encoder)
    return other


def test_a_planted_layer_is_learned_and_layers_without_a_task_vector_stay(base: Base, images: TinyData) -> None:
    planted = (with_vectors(tiny_expert(DEPTH, base, 1, shift=0.1), base, ("blocks.2.",)),)
    learned = AdaMerging(steps=60, lr=0.05, batch_size=5).observe(given(base, planted, images))
    assert value(learned, "block 2")[0] == pytest.approx(1, abs=0.05)
    for layer in ("embeddings", "block 0", "block 1", "block 3", "final"):
        assert value(learned, layer)[0] == pytest.approx(0.3), layer


@pytest.mark.parametrize("objective", ["predictions", "supervised"])
def test_objectives_on_predictions_find_the_one_expert_too(base: Base, objective: str) -> None:
    expert = tiny_expert(regression("edges"), base, 1, shift=0.05)
    data = TinyData(5, (expert.task,))
    with torch.inference_mode():
        data.samples = [replace(s, targets={"edges": expert(s.image[None])[0]}) for s in data.samples]
    method = AdaMerging(granularity="task", objective=objective, steps=80, lr=0.03, batch_size=5)
    assert value(method.observe(given(base, (expert,), data)), "all")[0] == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize(("initial", "used"), [(1.6, 1.0), (-0.5, 0.0)])
def test_clamped_coefficients_are_used_and_told_between_0_and_1(
    base: Base, images: TinyData, initial: float, used: float
) -> None:
    expert = tiny_expert(DEPTH, base, 1, shift=0.05)
    method = AdaMerging(granularity="task", steps=2, batch_size=2, initial=initial, clamp=True)
    bounded = method.observe(given(base, (expert,), images))
    free = replace(method, clamp=False).observe(given(base, (expert,), images))
    assert value(bounded, "all") == [used]
    assert value(free, "all") != pytest.approx([used], abs=0.3)
    assert bounded.losses[0] < free.losses[0]


# -- features are computed once ---------------------------------------------------------------------------------


def test_an_experts_taps_are_kept_for_the_images_that_are_used(base: Base, images: TinyData) -> None:
    expert = tiny_expert(DEPTH, base, 1)
    kept = ExpertTaps(expert, given(base, (expert,), images), [0, 2, 4])
    with torch.no_grad():
        expected = expert.encoder(torch.stack([images[4].image, images[0].image]))
    found = kept.at([4, 0])
    for ours, theirs in zip((*found.maps, *found.prefix), (*expected.maps, *expected.prefix), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    with pytest.raises(KeyError):
        kept.at([1])


def test_every_epoch_draws_every_image_once_and_batches_run_on() -> None:
    drawn = [i for batch in schedule(5, 2, 10, seed=3) for i in batch]
    assert len(drawn) == 20
    assert all(sorted(drawn[start : start + 5]) == [0, 1, 2, 3, 4] for start in range(0, 20, 5))
    assert schedule(5, 2, 10, 3) == schedule(5, 2, 10, 3) != schedule(5, 2, 10, 4)
    assert schedule(3, 8, 2, 0) == [sorted(b, key=b.index) for b in schedule(3, 3, 2, 0)]  # fewer images than a batch


# -- behaviour --------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_coefficients_bit_for_bit(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData
) -> None:
    method = AdaMerging(steps=4, batch_size=2)
    first, again, other = (method.observe(given(base, experts, images, seed)) for seed in (1, 1, 2))
    assert torch.equal(first.coefficients.values, again.coefficients.values)
    assert first.losses == again.losses
    assert not torch.equal(first.coefficients.values, other.coefficients.values)


def test_the_order_of_the_experts_changes_nothing(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData
) -> None:
    method = AdaMerging(steps=5, batch_size=2, objective="predictions")
    forwards = method.observe(given(base, experts, images)).coefficients.values
    backwards = method.observe(given(base, experts[::-1], images)).coefficients.values
    assert torch.allclose(forwards, backwards.flip(1), atol=1e-3)


def test_base_experts_and_the_global_chance_are_left_alone(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData
) -> None:
    experts[1].train()
    before, state = state_of(base.vit, *experts), torch.get_rng_state()
    for name in ("features", "predictions"):
        AdaMerging(objective=name, steps=2, batch_size=2).observe(given(base, experts, images))
    assert state_of(base.vit, *experts) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert experts[1].encoder.training
    assert all(p.requires_grad and p.grad is None for e in experts for p in e.parameters())


def test_experts_that_equal_the_base_leave_the_coefficients_where_they_began(base: Base, images: TinyData) -> None:
    idle = tuple(tiny_expert(task, base, 1, shift=0.0) for task in ALL)
    learned = AdaMerging(steps=3, batch_size=2).observe(given(base, idle, images))
    assert torch.equal(learned.coefficients.values, torch.full((6, 3), 0.3))
    assert all(loss == pytest.approx(0, abs=1e-6) for loss in learned.losses)


def test_the_record_says_what_was_learned(base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData) -> None:
    method = AdaMerging(steps=2, batch_size=2)
    learned = method.observe(given(base, experts, images))
    record = json.loads(json.dumps(method.record(learned)))
    assert record["tasks"] == ["segmentation", "depth", "normals"]
    assert record["coefficients"]["block 1"] == pytest.approx(learned.coefficients.values[2].tolist())
    assert record["losses"] == list(learned.losses)
    assert (record["granularity"], record["objective"], record["steps"]) == ("layer", "features", 2)


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "magic"}, "unknown objective 'magic' of adamerging; known: features, predictions, entropy, sup"),
        ({"granularity": "head"}, "unknown granularity 'head' of adamerging; known: task, layer, tensor"),
        ({"steps": 0}, "steps of adamerging must be a whole number, 1 or more, got 0"),
        ({"steps": 10.0}, "steps of adamerging must be a whole number, 1 or more, got 10.0"),
        ({"batch_size": 0}, "batch_size of adamerging must be a whole number, 1 or more, got 0"),
        ({"lr": 0.0}, "lr of adamerging must be above 0, got 0.0"),
        ({"lr": float("nan")}, "lr of adamerging must be a finite number, got nan"),
        ({"initial": float("inf")}, "initial of adamerging must be a finite number, got inf"),
        ({"density": 0.0}, r"density of adamerging is a share in \(0, 1\], got 0.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        AdaMerging(**options)  # type: ignore[arg-type]


def test_entropy_is_refused_for_tasks_without_classes(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData
) -> None:
    with pytest.raises(SimoError, match="class probabilities, which depth, normals do not predict; take 'features'"):
        AdaMerging(objective="entropy").observe(given(base, experts, images))


def test_the_supervised_objective_refuses_images_without_labels(
    base: Base, experts: tuple[SingleTaskModel, ...]
) -> None:
    method = AdaMerging(objective="supervised")
    assert method.needs_labels
    assert not AdaMerging().needs_labels
    with pytest.raises(SimoError, match=r"tiny \(val\) has none for segmentation, normals; give it labelled"):
        merge(experts, method, base, TinyData(3, (DEPTH,)))
    with pytest.raises(SimoError, match=r"labels of tiny \(test\), .*; take another split"):
        merge(experts, method, base, TinyData(3, ALL, split="test"))


def test_labels_of_another_meaning_are_refused(base: Base, experts: tuple[SingleTaskModel, ...]) -> None:
    data = TinyData(3, (Segmentation(classes=("floor", "wall", "door")), DEPTH, NORMALS))
    with pytest.raises(SimoError, match="task 'segmentation': the model has class 2 'lamp', tiny has 'door'"):
        merge(experts, AdaMerging(objective="supervised"), base, data)


def test_images_of_different_sizes_are_refused(base: Base, experts: tuple[SingleTaskModel, ...]) -> None:
    data = TinyData(2)
    data.samples[1] = TinyData(1, size=(48, 32)).samples[0]
    with pytest.raises(SimoError, match=r"differ in size|different sizes"):
        AdaMerging(steps=2, batch_size=1).observe(given(base, experts, data))


def test_a_loss_that_is_not_finite_stops_the_descent(base: Base, images: TinyData) -> None:
    expert = tiny_expert(DEPTH, base, 1, shift=0.3)
    with pytest.raises(SimoError, match=r"loss of adamerging became .* at step .*; lower lr"):
        AdaMerging(lr=1e30, steps=4, batch_size=2).observe(given(base, (expert,), images))
