"""Learned coefficients: gradients, known optima, what each objective computes, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from simo_merge.data import Batch, collate
from simo_merge.errors import SimoError
from simo_merge.merging import MergeData, Parameter, merge
from simo_merge.merging.learned.adamerging import AdaMerging
from simo_merge.merging.learned.coefficients import Coefficients, MergedEncoder, combine, parameters_of
from simo_merge.merging.learned.expert_taps import ExpertTaps
from simo_merge.merging.learned.fitting import Learned, schedule
from simo_merge.merging.learned.objectives import OBJECTIVES, prediction_distance
from simo_merge.models import Encoder, SingleTaskModel
from simo_merge.tasks import Depth, Normals, Segmentation
from simo_merge.weights import Base
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TAPS, TinyData, regression, state_of, tiny_base, tiny_expert

CPU = torch.device("cpu")
ALL = (SEGMENTATION, DEPTH, NORMALS)


@pytest.fixture
def base() -> Base:
    return tiny_base()


@pytest.fixture
def experts(base: Base) -> tuple[SingleTaskModel, ...]:
    return tuple(tiny_expert(task, base, seed + 1) for seed, task in enumerate(ALL))


@pytest.fixture
def images() -> TinyData:
    return TinyData(5)


def given(base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData, seed: int = 0) -> MergeData:
    return MergeData(base, experts, images, CPU, seed=seed)


def with_vectors(expert: SingleTaskModel, base: Base, keep: tuple[str, ...]) -> SingleTaskModel:
    """The expert with its task vector set to zero wherever the parameter's name does not begin with one of `keep`."""
    changed = copy.deepcopy(expert)
    origin = base.vit.state_dict()
    for name, tensor in changed.encoder.vit.state_dict().items():
        if not name.startswith(keep):
            tensor.copy_(origin[name])
    return changed


def merged_encoder(
    base: Base, experts: tuple[SingleTaskModel, ...], granularity: str, initial: float = 0.3, double: bool = False
) -> MergedEncoder:
    convert = (lambda t: t.double()) if double else (lambda t: t)
    states = [{n: convert(t) for n, t in e.encoder.vit.state_dict().items()} for e in experts]
    origin = {n: convert(t) for n, t in base.vit.state_dict().items()}
    template = copy.deepcopy(experts[0].encoder)
    return MergedEncoder(
        template.double() if double else template, parameters_of(origin, states), granularity, initial, CPU
    )


def value(learned: Learned, group: str) -> list[float]:
    return learned.coefficients.as_lists()[group]


# -- the merged encoder -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 2), (2, 3, 4)])
def test_a_parameter_of_any_shape_is_the_base_plus_the_weighted_task_vectors(shape: tuple[int, ...]) -> None:
    base, experts = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    parameter = Parameter("blocks.0.x", base, tuple(experts), layer=1, layers=6)
    learned = Learned(Coefficients("layer", ("layer 0", "layer 1"), torch.tensor([[9.0] * 3, [0.5, -1, 2]])), (), ())
    expected = base.double()
    for coefficient, expert in zip((0.5, -1.0, 2.0), experts, strict=True):
        expected = expected + coefficient * (expert.double() - base.double())
    found = AdaMerging().merge(parameter, learned)
    assert found.shape == shape
    assert found.dtype == base.dtype
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_one_expert_with_coefficient_1_gives_the_expert_back() -> None:
    base, expert = torch.randn(5, 4), torch.randn(5, 4)
    assert torch.allclose(combine(base, (expert - base)[None], torch.ones(1)), expert, atol=1e-6)


def test_the_encoder_that_is_differentiated_is_the_one_that_is_merged_bit_for_bit(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData
) -> None:
    found = merged_encoder(base, experts, "layer")
    with torch.no_grad():
        found.raw.copy_(torch.rand_like(found.raw))
        taps = found(images[0].image[None])
    learned = Learned(found.coefficients(), (), ())
    states = [e.encoder.vit.state_dict() for e in experts]
    encoder = copy.deepcopy(experts[0].encoder)
    for parameter in parameters_of(base.vit.state_dict(), states):
        encoder.vit.state_dict()[parameter.name].copy_(AdaMerging().merge(parameter, learned))
    with torch.no_grad():
        expected = encoder(images[0].image[None])
    for ours, theirs in zip((*taps.maps, *taps.prefix), (*expected.maps, *expected.prefix), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("granularity", "groups"), [("task", 1), ("layer", 6), ("tensor", None)])
def test_groups_are_all_parameters_the_layers_or_the_tensors(
    base: Base, experts: tuple[SingleTaskModel, ...], granularity: str, groups: int | None
) -> None:
    found = merged_encoder(base, experts, granularity)
    assert len(found.groups) == (len(base.vit.state_dict()) if groups is None else groups)
    assert found.raw.shape == (len(found.groups), 3)


def test_the_gradient_of_every_coefficient_equals_finite_differences_in_float64(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData
) -> None:
    pair = experts[:2]
    found = merged_encoder(base, pair, "layer", double=True)
    wanted = [copy.deepcopy(e.encoder).double()(images[0].image[None].double()) for e in pair]
    image = images[0].image[None].double()

    def loss(values: Tensor) -> Tensor:
        found.raw = values
        taps = found(image)
        found_parts = (*taps.maps, *taps.prefix)
        parts = [zip(found_parts, (*theirs.maps, *theirs.prefix), strict=True) for theirs in wanted]
        return torch.stack([((ours - y) ** 2).mean() for part in parts for ours, y in part]).sum()

    start = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (start,), eps=1e-6, atol=1e-7, rtol=1e-5)
    (gradient,) = torch.autograd.grad(loss(start), start)
    assert (gradient[:5].abs() > 1e-8).all()
    assert (gradient[5] == 0).all()  # the norm after the last block reaches no tap


def test_the_gradient_is_the_inner_product_of_the_weights_gradient_and_the_task_vector(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData
) -> None:
    found = merged_encoder(base, experts, "tensor")
    (gradient,) = torch.autograd.grad(found(images[0].image[None]).maps[1].square().mean(), found.raw)
    weights = {name: w.detach().requires_grad_() for name, w in found.weights().items()}
    loss = functional_call(found.encoder, weights, (images[0].image[None],)).maps[1].square().mean()
    through = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    origin = base.vit.state_dict()
    for row, (name, to_weight) in enumerate(zip(weights, through, strict=True)):
        plain = name.removeprefix("vit.")
        for column, expert in enumerate(experts):
            vector = expert.encoder.vit.state_dict()[plain] - origin[plain]
            expected = 0.0 if to_weight is None else float((to_weight.double() * vector.double()).sum())
            assert float(gradient[row, column]) == pytest.approx(expected, rel=1e-3, abs=1e-6), name


def test_a_coefficient_a_task_is_a_coefficient_a_layer_with_the_layers_tied(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData
) -> None:
    gradients = {}
    for granularity in ("task", "layer", "tensor"):
        found = merged_encoder(base, experts, granularity, double=True)
        taps = found(images[0].image[None].double())
        (gradients[granularity],) = torch.autograd.grad(taps.maps[1].square().mean(), found.raw)
    for granularity in ("layer", "tensor"):
        assert torch.allclose(gradients[granularity].sum(0, keepdim=True), gradients["task"], rtol=1e-9)


def test_with_a_density_the_vectors_are_trimmed_over_the_whole_model_and_rid_of_entries_against_the_elected_sign(
    base: Base, experts: tuple[SingleTaskModel, ...]
) -> None:
    states = [e.encoder.vit.state_dict() for e in experts]
    parameters = list(parameters_of(base.vit.state_dict(), states))
    method = AdaMerging(density=0.2)
    thresholds = method.thresholds(lambda: iter(parameters))
    found = torch.cat([method.vectors(p, thresholds).reshape(3, -1) for p in parameters], dim=1)
    vectors = torch.cat([p.vectors.reshape(3, -1) for p in parameters], dim=1)
    size = vectors.shape[1]
    for vector in vectors:
        vector[vector.abs() < vector.abs().sort().values[size - round(0.2 * size)]] = 0
    signs = vectors.sum(0).sign()
    expected = torch.where(vectors * signs > 0, vectors, 0.0)
    assert torch.equal(found, expected)
    assert 0 < int((found != 0).sum()) < 0.6 * size


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
    for layer in range(5):
        assert sum(value(learned, f"layer {layer}")) == pytest.approx(1, abs=0.1), layer
    assert value(learned, "layer 5") == pytest.approx([0.3, 0.3])  # after the last tap


def replace_task(expert: SingleTaskModel, task: Normals, base: Base) -> SingleTaskModel:
    other = tiny_expert(task, base, 9)
    other.encoder = copy.deepcopy(expert.encoder)
    return other


def test_a_planted_layer_is_learned_and_layers_without_a_task_vector_stay(base: Base, images: TinyData) -> None:
    planted = (with_vectors(tiny_expert(DEPTH, base, 1, shift=0.1), base, ("blocks.2.",)),)
    learned = AdaMerging(steps=60, lr=0.05, batch_size=5).observe(given(base, planted, images))
    assert value(learned, "layer 3")[0] == pytest.approx(1, abs=0.05)
    for layer in (0, 1, 2, 4, 5):
        assert value(learned, f"layer {layer}")[0] == pytest.approx(0.3), layer


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


# -- the objectives ---------------------------------------------------------------------------------------------


def losses(name: str, data: MergeData, indices: list[int], at: Encoder) -> Tensor:
    objective = OBJECTIVES[name](data, list(range(len(data.images))))
    batch = collate([data.images[i] for i in indices])
    with torch.no_grad():
        return objective.losses(at(batch.images), indices, batch)


def test_agreement_of_features_is_the_unexplained_variance_averaged_over_channels(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData
) -> None:
    encoder, indices = Encoder(base.vit, base.name, TAPS), [3, 0]
    found = losses("features", given(base, experts, images), indices, encoder)
    for task, expert in enumerate(experts):
        every, chosen = (torch.stack([images[i].image for i in which]) for which in (range(5), indices))
        with torch.no_grad():
            of_all, ours, theirs = expert.encoder(every), encoder(chosen), expert.encoder(chosen)
        expected = []
        for tap in range(2):
            tokens = of_all.maps[tap].double().flatten(2)
            parts, count = 0.0, 0
            for channel in range(48):
                variance = float(tokens[:, channel].var(correction=0))
                for mine, other in ((ours.maps, theirs.maps), (ours.prefix, theirs.prefix)):
                    error = (mine[tap] - other[tap]).double()
                    error = error[:, channel] if error.ndim == 4 else error[..., channel]
                    parts, count = parts + float((error**2).sum()) / variance, count + error.numel()
            expected.append(parts / count)
        assert float(found[task]) == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_a_huge_channel_counts_no_more_than_any_other(base: Base, images: TinyData) -> None:
    # The last tap is the residual stream: a hundredfold output of one channel of the last block multiplies the
    # deviation of that channel, and the unexplained variance does not care.
    def scaled(model: SingleTaskModel) -> SingleTaskModel:
        large = copy.deepcopy(model)
        with torch.no_grad():
            for name in ("weight", "bias"):
                large.encoder.get_parameter(f"vit.blocks.3.mlp.fc2.{name}")[7] *= 100
        return large

    expert = tiny_expert(DEPTH, base, 1)
    plain = losses("features", given(base, (expert,), images), [0, 1], tiny_expert(DEPTH, base, 2).encoder)
    huge = losses(
        "features", given(base, (scaled(expert),), images), [0, 1], scaled(tiny_expert(DEPTH, base, 2)).encoder
    )
    assert float(huge[0]) == pytest.approx(float(plain[0]), rel=0.25)


@pytest.mark.parametrize("name", ["features", "predictions"])
def test_agreement_is_0_at_the_expert_itself_and_above_0_elsewhere(
    base: Base, experts: tuple[SingleTaskModel, ...], images: TinyData, name: str
) -> None:
    for row, expert in enumerate(experts):
        found = losses(name, given(base, experts, images), [1, 2], expert.encoder)
        assert float(found[row]) == pytest.approx(0, abs=1e-6)
        assert (torch.cat([found[:row], found[row + 1 :]]) > 1e-4).all()


def test_the_distance_of_predictions_is_the_task_kinds_own() -> None:
    logits, other = torch.randn(2, 4, 3, 3).double(), torch.randn(2, 4, 3, 3).double()
    p, q = other.softmax(1), logits.softmax(1)
    kl = (p * (p.log() - q.log())).sum(1).mean()
    assert float(prediction_distance(Segmentation(classes=("a", "b", "c", "d")), logits, other)) == pytest.approx(
        float(kl)
    )
    u, v = (torch.nn.functional.normalize(x[:, :3], dim=1) for x in (logits, other))
    angle = torch.nn.functional.cosine_similarity(u, v, dim=1)
    assert float(prediction_distance(Normals(), u, v)) == pytest.approx(float((1 - angle).mean()))
    d, e = logits[:, :1].exp(), other[:, :1].exp()
    assert float(prediction_distance(Depth(), d, e)) == pytest.approx(float((d - e).abs().mean()))


def test_the_unit_of_a_task_does_not_weigh_it(base: Base, images: TinyData) -> None:
    metres, millimetres = tiny_expert(Depth(scale=2.0), base, 1), tiny_expert(Depth(scale=2000.0), base, 1)
    at = Encoder(base.vit, base.name, TAPS)
    found = [losses("predictions", given(base, (e,), images), [0, 4], at) for e in (metres, millimetres)]
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-4)
    with torch.no_grad():
        spread = torch.cat([metres(images[i].image[None]) for i in range(5)]).double().std(correction=0)
        chosen = torch.stack([images[i].image for i in (0, 4)])
        error = (metres.decode(at(chosen), (32, 48)) - metres(chosen)).abs().mean()
    assert float(found[0]) == pytest.approx(float(error / spread), rel=1e-4)


def test_entropy_is_the_mean_over_pixels_of_the_predicted_distributions(base: Base, images: TinyData) -> None:
    expert = tiny_expert(SEGMENTATION, base, 1)
    found = losses("entropy", given(base, (expert,), images), [0, 1], expert.encoder)
    with torch.no_grad():
        p = expert(torch.stack([images[0].image, images[1].image])).double().softmax(1)
    assert float(found) == pytest.approx(float(-(p * p.log()).sum(1).mean()), rel=1e-5)
    assert 0 < float(found) < math.log(3)


def test_the_supervised_objective_is_the_tasks_own_loss_on_valid_labels(
    base: Base, experts: tuple[SingleTaskModel, ...]
) -> None:
    data = TinyData(4, ALL)
    at = Encoder(base.vit, base.name, TAPS)
    found = losses("supervised", given(base, experts, data), [2, 1], at)
    batch: Batch = collate([data[2], data[1]])
    with torch.no_grad():
        for row, expert in enumerate(experts):
            name = expert.task.name
            prediction = expert.decode(at(batch.images), (32, 48))
            expected = expert.task.loss(prediction, batch.targets[name], batch.masks[name])
            assert float(found[row]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n != "entropy"])
def test_learning_lowers_every_objective(base: Base, experts: tuple[SingleTaskModel, ...], name: str) -> None:
    data = TinyData(4, ALL)
    learned = AdaMerging(objective=name, steps=25, lr=0.03, batch_size=4).observe(given(base, experts, data))
    assert learned.losses[-1] < learned.losses[0]


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
    assert record["coefficients"]["layer 2"] == pytest.approx(learned.coefficients.values[2].tolist())
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
