"""Scores follow a protocol, by default pooled over every valid pixel, and need data of the model's own tasks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.metrics import PROTOCOLS
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.scoring import batches, predict, scorable_tasks, score, score_sharing_encoder
from simo_merge.tasks import Depth, Regression, Segmentation
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, SIZE, TinyData, tiny_base, tiny_expert

TASKS = (SEGMENTATION, DEPTH, NORMALS)


@pytest.fixture
def model() -> MultiTaskModel:
    base = tiny_base()
    experts = [tiny_expert(task, base, seed) for seed, task in enumerate(TASKS)]
    decoders = {expert.task.name: expert.decoder for expert in experts}
    return MultiTaskModel(experts[0].encoder, decoders, {task.name: task for task in TASKS})


@pytest.fixture
def expert() -> SingleTaskModel:
    return tiny_expert(DEPTH, tiny_base())


# -- scores -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_the_batch_size_does_not_change_a_score(model: MultiTaskModel, batch_size: int) -> None:
    data = TinyData(5, TASKS)
    together = score(model, data, batch_size=5)
    scores = score(model, data, batch_size=batch_size)
    assert list(scores) == ["segmentation", "depth", "normals"]
    for task, values in together.items():
        assert scores[task] == pytest.approx(values, rel=1e-5), task


def test_depth_is_scored_by_the_mean_over_all_valid_pixels_not_over_images(expert: SingleTaskModel) -> None:
    data = TinyData(3, (DEPTH,))
    data.samples[1].masks["depth"][:] = False  # an image without labels
    data.samples[2].masks["depth"][4:] = False  # and one with few
    errors = []
    for sample in data.samples:
        with torch.inference_mode():
            prediction = expert.eval()(sample.image[None])[0]
        errors.append((prediction - sample.targets["depth"]).abs()[0][sample.masks["depth"]].numpy())
    pooled = np.concatenate(errors).astype(np.float64).mean()
    assert score(expert, data)["depth"]["abs"] == pytest.approx(pooled, rel=1e-6)


def test_under_mtan_the_mean_is_over_batches_as_they_were_scored(expert: SingleTaskModel) -> None:
    data = TinyData(3, (DEPTH,))
    data.samples[2].masks["depth"][4:] = False
    alone = []
    for sample in data.samples:
        one = TinyData(1, (DEPTH,))
        one.samples = [sample]
        alone.append(score(expert, one)["depth"]["abs"])
    first = TinyData(2, (DEPTH,))
    first.samples = data.samples[:2]
    by_image = score(expert, data, batch_size=1, protocol="mtan")["depth"]["abs"]
    by_two = score(expert, data, batch_size=2, protocol="mtan")["depth"]["abs"]
    assert by_image == pytest.approx(np.mean(alone), rel=1e-5)
    assert by_two == pytest.approx((score(expert, first)["depth"]["abs"] + alone[2]) / 2, rel=1e-5)
    assert by_image != pytest.approx(by_two, rel=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_scores_every_task(model: MultiTaskModel, protocol: str) -> None:
    scores = score(model, TinyData(3, TASKS), batch_size=2, protocol=protocol)
    for task in TASKS:
        assert np.isfinite(scores[task.name][task.primary_under(protocol)])
        assert next(iter(scores[task.name])) == task.primary_under(protocol)


def test_an_unknown_protocol_is_refused(expert: SingleTaskModel) -> None:
    with pytest.raises(SimoError, match="unknown protocol 'best'; expected one of pooled, mtan"):
        score(expert, TinyData(2, (DEPTH,)), protocol="best")


def test_only_tasks_with_labels_are_scored_and_only_their_decoders_run(model: MultiTaskModel) -> None:
    run = []
    model.decoders["normals"].register_forward_hook(lambda *_: run.append("normals"))
    assert list(score(model, TinyData(2, (DEPTH, Regression(name="edges"))))) == ["depth"]
    assert not run


def test_an_expert_is_scored_on_its_own_task(expert: SingleTaskModel) -> None:
    assert list(score(expert, TinyData(2, TASKS))) == ["depth"]


def test_the_model_is_scored_in_evaluation_mode_and_left_in_it(expert: SingleTaskModel) -> None:
    data = TinyData(4, (DEPTH,))
    wanted = score(expert.eval(), data)
    before = expert.decoder.norm.running_mean.clone()
    assert score(expert.train(), data) == wanted
    assert torch.equal(expert.decoder.norm.running_mean, before)
    assert not expert.training


def test_bfloat16_gives_nearly_the_same_score(model: MultiTaskModel) -> None:
    data = TinyData(4, TASKS)
    exact, low = score(model, data), score(model, data, precision="bfloat16")
    assert low["depth"]["abs"] == pytest.approx(exact["depth"]["abs"], rel=0.02)
    assert low["depth"] != exact["depth"]


def test_pixels_without_a_label_give_a_score_of_nan(expert: SingleTaskModel) -> None:
    data = TinyData(2, (DEPTH,))
    for sample in data.samples:
        sample.masks["depth"][:] = False
    assert all(np.isnan(value) for value in score(expert, data)["depth"].values())


def test_images_come_in_order_and_none_is_lost() -> None:
    data = TinyData(5, (DEPTH,))
    assert [batch.keys for batch in batches(data, 2)] == [data.keys[:2], data.keys[2:4], data.keys[4:]]


def test_both_kinds_of_model_predict_by_task_name(model: MultiTaskModel, expert: SingleTaskModel) -> None:
    images = torch.rand(1, 3, *SIZE)
    with torch.inference_mode():
        assert torch.equal(predict(expert, images, ["depth"])["depth"], expert(images))
        assert list(predict(model, images, ["normals"])) == ["normals"]


# -- data that do not suit --------------------------------------------------------------------------------------


def test_no_task_in_common_is_refused(expert: SingleTaskModel) -> None:
    with pytest.raises(SimoError, match=r"predicts depth, but tiny \(val\) has labels for segmentation, normals"):
        score(expert, TinyData(2, (SEGMENTATION, NORMALS)))
    with pytest.raises(SimoError, match=r"has labels for nothing"):
        score(expert, TinyData(2))


def test_an_empty_split_is_refused(expert: SingleTaskModel) -> None:
    with pytest.raises(SimoError, match=r"tiny \(val\) has no images to evaluate on"):
        score(expert, TinyData(0, (DEPTH,)))


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (Segmentation(classes=("floor", "wall")), "channels 3, tiny has 2"),
        (Segmentation(classes=("floor", "lamp", "wall")), "class 1 'wall', tiny has 'lamp'"),
        (Depth(name="segmentation"), "kind 'segmentation', tiny has 'depth'"),
    ],
)
def test_a_task_of_the_same_name_but_another_meaning_is_refused(theirs: Segmentation, message: str) -> None:
    expert = tiny_expert(SEGMENTATION, tiny_base())
    with pytest.raises(SimoError, match=rf"task 'segmentation': the model has {message}; evaluate on data of the same"):
        score(expert, TinyData(2, (theirs,)))


def test_another_unit_is_refused() -> None:
    with pytest.raises(SimoError, match="task 'depth': the model has unit 'm', tiny has 'mm'"):
        scorable_tasks({"depth": DEPTH}, TinyData(1, (Depth(unit="mm"),)))


def test_options_of_training_are_no_part_of_a_tasks_meaning() -> None:
    theirs = Segmentation(classes=SEGMENTATION.classes, palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    data = TinyData(1, (theirs, Depth(loss_name="l2", scale=3.0)))
    assert scorable_tasks({"segmentation": SEGMENTATION, "depth": DEPTH}, data) == ["segmentation", "depth"]


def test_a_model_that_predicts_nan_gets_no_score(expert: SingleTaskModel) -> None:
    with torch.no_grad():
        expert.decoder.project.bias.fill_(torch.nan)
    with pytest.raises(SimoError, match=r"depth: .* predicted values at valid pixels are NaN"):
        score(expert, TinyData(2, (DEPTH,)))


def test_images_of_different_sizes_need_a_batch_size_of_one(expert: SingleTaskModel) -> None:
    data = TinyData(2, (DEPTH,))
    data.samples[1] = TinyData(1, (DEPTH,), size=(16, 32)).samples[0]
    with pytest.raises(SimoError, match="differ in size"):
        score(expert, data)
    assert np.isfinite(score(expert, data, batch_size=1)["depth"]["abs"])


def test_an_unknown_precision_is_refused(expert: SingleTaskModel) -> None:
    with pytest.raises(SimoError, match="unknown precision 'int8'"):
        score(expert, TinyData(2, (DEPTH,)), precision="int8")


def test_models_that_share_an_encoder_get_the_scores_they_get_alone_from_one_pass(model: MultiTaskModel) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.decoders.parameters():
            parameter.add_(0.1)
    data = TinyData(5, list(model.tasks.values()))
    passes: list[int] = []
    for each in (model, other):
        each.encoder.register_forward_hook(lambda *_: passes.append(1))
    together = score_sharing_encoder({"a": model, "b": other}, data, batch_size=2)
    assert len(passes) == 3  # batches, not batches times models
    assert together == {"a": score(model, data, batch_size=2), "b": score(other, data, batch_size=2)}
    assert together["a"] != together["b"]
    mtan = score_sharing_encoder({"a": model}, data, batch_size=2, protocol="mtan")
    assert mtan == {"a": score(model, data, batch_size=2, protocol="mtan")}


def test_another_encoder_is_not_scored_with_the_first_ones_features(model: MultiTaskModel) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.encoder.parameters()).add_(1e-3)
    with pytest.raises(SimoError, match="b has another encoder"):
        score_sharing_encoder({"a": model, "b": other}, TinyData(2, list(model.tasks.values())))
