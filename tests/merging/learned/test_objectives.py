"""What each objective of learned coefficients computes."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from simo_merge.data import Batch, collate
from simo_merge.merging.learned.adamerging import AdaMerging
from simo_merge.merging.learned.objectives import OBJECTIVES
from simo_merge.models import Encoder, SingleTaskModel
from simo_merge.tasks import Depth, Normals, Segmentation
from simo_merge.tasks.agreement import prediction_distance
from simo_merge.weights import Base
from tests.merging.learned.learning import ALL, given, losses
from tests.tiny import DEPTH, SEGMENTATION, TAPS, TinyData, tiny_expert


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
            kinds = [0.0, 0.0]  # patches, class token
            for channel in range(48):
                variance = float(tokens[:, channel].var(correction=0))
                for kind, (mine, other) in enumerate(((ours.maps, theirs.maps), (ours.prefix, theirs.prefix))):
                    error = (mine[tap] - other[tap]).double()
                    error = error[:, channel] if error.ndim == 4 else error[..., channel]
                    kinds[kind] += float((error**2).mean()) / variance / 48
            expected.append(sum(kinds) / 2)
        assert float(found[task]) == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_a_channel_that_hardly_varies_does_not_dominate(base: Base, images: TinyData) -> None:
    def stilled(model: SingleTaskModel) -> SingleTaskModel:
        still = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in still.encoder.parameters():
                if parameter.shape[:1] == (48,):  # what writes into channel 7 of the residual stream
                    parameter[7] *= 1e-4
            for name in ("cls_token", "pos_embed"):
                still.encoder.get_parameter(f"vit.{name}")[..., 7] *= 1e-4
        return still

    data = given(base, (stilled(tiny_expert(DEPTH, base, 1)),), images)
    plain, moved = stilled(tiny_expert(DEPTH, base, 2)).encoder, stilled(tiny_expert(DEPTH, base, 2)).encoder
    with torch.no_grad():
        moved.get_parameter("vit.blocks.3.mlp.fc2.bias")[7] += 0.01  # a hundred of its deviations, none of another's
    before, after = (float(losses("features", data, [0, 1], encoder)) for encoder in (plain, moved))
    assert before < after < 1.1 * before


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
