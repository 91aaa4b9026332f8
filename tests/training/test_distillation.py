"""Feature distillation: the encoder is drawn to the experts' features, and nothing of it is left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel, Taps
from simo_merge.training import JointConfig, joint, train_joint, weighting_named
from simo_merge.training.distillation import Distillation
from simo_merge.training.trainer import Trainer
from simo_merge.weights import Base
from tests.named import TAPS, named_base
from tests.tiny import DEPTH, NORMALS, TinyData, state_of, tiny_expert

TASKS = (DEPTH, NORMALS)
NAMES = [task.name for task in TASKS]
CONFIG = JointConfig(
    decoder="linear", decoder_steps=2, steps=4, batch_size=2, precision="float32", encoder_lr=1e-3, distill=1.0
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMO_MERGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base() -> Base:
    torch.manual_seed(0)
    return named_base()


@pytest.fixture
def teachers(base: Base) -> list[SingleTaskModel]:
    return [tiny_expert(task, base, seed, 0.02, taps=TAPS) for seed, task in enumerate(TASKS)]


@pytest.fixture
def train(base: Base, teachers: list[SingleTaskModel]) -> Callable[..., MultiTaskModel]:
    def run(config: JointConfig = CONFIG, experts: Any = teachers) -> MultiTaskModel:
        return train_joint(TinyData(6, TASKS), NAMES, config, base, TAPS, device="cpu", experts=experts)

    return run


def slow_distance(ours: Taps, theirs: Taps, matrices: list[Tensor]) -> float:
    """Token by token, in loops."""
    taps = []
    for index, matrix in enumerate(matrices):
        tokens = []
        for image in range(len(ours.maps[index])):
            for mine, his in ((ours.maps[index][image], theirs.maps[index][image]),):
                columns = zip(mine.flatten(1).T, his.flatten(1).T, strict=True)
                tokens += [(matrix @ z, target) for z, target in columns]
            pairs = zip(ours.prefix[index][image], theirs.prefix[index][image], strict=True)
            tokens += [(matrix @ z, target) for z, target in pairs]
        values = [float((a / a.norm() - b / b.norm()).square().sum()) for a, b in tokens]
        taps.append(sum(values) / len(values))
    return sum(taps) / len(taps)


def test_the_loss_is_the_distance_of_directions_token_by_token(base: Base, teachers: list[SingleTaskModel]) -> None:
    encoder = Encoder(base.vit, base.name, TAPS).eval()
    made = Distillation({e.task.name: e for e in teachers}, encoder, 2.5, 1e-2, "float32")
    images = torch.rand(2, 3, 32, 48)
    for matrices in made.adapters.values():
        for matrix in matrices:
            torch.nn.init.normal_(matrix.weight)
    with torch.no_grad():
        taps = encoder(images)
        expected = 0.0
        for expert in teachers:
            weights = [matrix.weight for matrix in made.adapters[expert.task.name]]
            expected += slow_distance(taps, expert.encoder(images), weights)
        assert float(made.loss(images, taps)) == pytest.approx(2.5 * expected, rel=1e-4)


def test_the_features_of_an_expert_are_at_no_distance_from_themselves(teachers: list[SingleTaskModel]) -> None:
    expert = teachers[0]
    made = Distillation({"depth": expert}, copy.deepcopy(expert.encoder), 1.0, 1e-2, "float32")
    images = torch.rand(1, 3, 32, 48)
    assert made.loss(images, expert.encoder(images)).item() < 1e-10


@pytest.mark.parametrize("name", ["equal", "mgda", "auto-lambda"])
def test_it_goes_with_any_weighting_and_draws_the_encoder_to_the_experts(
    train: Callable[..., MultiTaskModel], teachers: list[SingleTaskModel], name: str
) -> None:
    config = replace(CONFIG, steps=6, weighting=weighting_named(name))
    images = torch.stack([TinyData(6, TASKS)[i].image for i in range(6)])

    def away(model: MultiTaskModel) -> float:
        made = Distillation({e.task.name: e for e in teachers}, model.encoder, 1.0, 1e-2, "float32")
        with torch.no_grad():
            return float(made.loss(images, model.encoder(images)))

    without = away(train(replace(config, distill=0.0), None))
    assert away(train(replace(config, distill=30.0))) < 0.8 * without


def test_the_model_holds_neither_experts_nor_matrices_and_says_what_it_was_distilled_from(
    train: Callable[..., MultiTaskModel], teachers: list[SingleTaskModel]
) -> None:
    before = state_of(*teachers)
    model = train()
    assert {key.split(".")[0] for key in model.state_dict()} == {"encoder", "decoders"}
    assert model.merge.method == "joint-equal-distilled"
    assert model.merge.parameters == {"distill": 1.0}
    assert [record["sha256"] for record in model.merge.experts.values()] == [state_of(e) for e in teachers]
    assert model.provenance["recipe"]["distillation"]["weight"] == 1.0
    assert state_of(*teachers) == before


def test_other_experts_are_another_recipe(train: Callable[..., MultiTaskModel], base: Base) -> None:
    others = [tiny_expert(task, base, 9, 0.02, taps=TAPS) for task in TASKS]
    assert train().provenance["recipe_hash"] != train(experts=others).provenance["recipe_hash"]


def test_an_interrupted_run_keeps_its_matrices(base: Base, teachers: list[SingleTaskModel], tmp_path: Path) -> None:
    def trainer(folder: Path, save_every: float) -> Trainer:
        model = joint._fresh(TinyData(6, TASKS), NAMES, CONFIG, base, TAPS)
        made = Distillation({e.task.name: e for e in teachers}, model.encoder, 1.0, 1e-2, "float32")
        return Trainer(model, TinyData(6, TASKS), CONFIG, folder, save_every=save_every, distillation=made)

    class Killed(BaseException):
        pass

    whole, cut, resumed = trainer(tmp_path / "a", 60), trainer(tmp_path / "b", 0), trainer(tmp_path / "b", 60)
    whole.run()
    step = cut._step

    def dying(stage: Any, batch: Any, optimizer: Any, number: int, *rest: Any) -> None:
        if number == 5:
            raise Killed
        step(stage, batch, optimizer, number, *rest)

    cut._step = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        cut.run()
    resumed.run()
    assert state_of(resumed.model) == state_of(whole.model)
    assert state_of(resumed.distillation.adapters) == state_of(whole.distillation.adapters)
    identity = torch.eye(len(whole.distillation.adapters["depth"][0].weight))
    assert not torch.equal(whole.distillation.adapters["depth"][0].weight, identity)


def test_experts_that_do_not_suit_are_refused(
    train: Callable[..., MultiTaskModel], base: Base, teachers: list[SingleTaskModel]
) -> None:
    with pytest.raises(SimoError, match=r"needs one expert for each of depth, normals; given: depth$"):
        train(experts=teachers[:1])
    with pytest.raises(SimoError, match="given: none"):
        train(experts=None)
    with pytest.raises(SimoError, match="given: depth, normals, depth"):
        train(experts=[*teachers, teachers[0]])
    with pytest.raises(SimoError, match="experts were given, but distill is 0"):
        train(replace(CONFIG, distill=0.0))
    other = [teachers[0], tiny_expert(NORMALS, base, 3, taps=(1, 2, 3))]
    with pytest.raises(SimoError, match=r"the expert for normals has taps \[1, 2, 3\] of 64 .* encoder \[1, 3, 5\]"):
        train(experts=other)
