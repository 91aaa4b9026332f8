"""Models: an expert predicts one task, a multi-task model all of them from one encoder pass."""

from __future__ import annotations

import copy

import pytest
import torch

from simo_merge.errors import SimoError
from simo_merge.models import Aligner, Encoder, MultiTaskModel, SingleTaskModel, build_decoder
from simo_merge.tasks import Regression
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, SIZE, tiny_base, tiny_expert

TASKS = {task.name: task for task in (SEGMENTATION, DEPTH, NORMALS)}


@pytest.fixture
def experts() -> dict[str, SingleTaskModel]:
    base = tiny_base()
    return {name: tiny_expert(task, base, seed) for seed, (name, task) in enumerate(TASKS.items())}


@pytest.fixture
def model(experts: dict[str, SingleTaskModel]) -> MultiTaskModel:
    encoder = copy.deepcopy(experts["depth"].encoder)
    return MultiTaskModel(encoder, {name: e.decoder for name, e in experts.items()}, TASKS).eval()


def shaken(model: MultiTaskModel, task: str) -> Aligner:
    """An aligner that is not the identity."""
    aligner = Aligner("affine", model.encoder.tap_channels, model.encoder.prefix_tokens)
    with torch.no_grad():
        for parameter in aligner.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    model.aligners[task] = aligner
    return aligner


# -- predictions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, (16, 16), (30, 45), (1, 1), (17, 64)])
@pytest.mark.parametrize("decoder", ["linear", "dpt"])
def test_predictions_are_valid_and_have_the_size_of_the_images(size: tuple[int, int], decoder: str) -> None:
    base = tiny_base()
    for task in TASKS.values():
        expert = tiny_expert(task, base, decoder=decoder, taps=(0, 1, 2, 3))
        with torch.inference_mode():
            prediction = expert(torch.rand(2, 3, *size))
        assert prediction.shape == (2, task.out_channels, *size)
        assert prediction.dtype == torch.float32
        if task is DEPTH:
            assert (prediction > 0).all()
        if task is NORMALS:
            torch.testing.assert_close(prediction.norm(dim=1), torch.ones(2, *size))


def test_a_multi_task_model_with_an_experts_encoder_predicts_as_that_expert(
    experts: dict[str, SingleTaskModel], model: MultiTaskModel
) -> None:
    images = torch.rand(2, 3, 30, 45)
    with torch.inference_mode():
        assert torch.equal(model(images)["depth"], experts["depth"](images))
        assert not torch.equal(model(images)["normals"], experts["normals"](images))


def test_all_tasks_come_from_one_encoder_pass(model: MultiTaskModel) -> None:
    passes = []
    model.encoder.vit.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    with torch.inference_mode():
        predictions = model(torch.rand(1, 3, *SIZE))
    assert list(predictions) == list(TASKS)
    assert len(passes) == model.encoder_passes == 1


def test_only_the_decoders_of_the_tasks_asked_for_are_run(model: MultiTaskModel) -> None:
    images, run = torch.rand(1, 3, *SIZE), []
    for name, decoder in model.decoders.items():
        decoder.register_forward_hook(lambda *_, name=name: run.append(name))
    with torch.inference_mode():
        everything = model(images)
        run.clear()
        predictions = model(images, ["normals", "segmentation"])
    assert list(predictions) == run == ["normals", "segmentation"]
    assert all(torch.equal(predictions[name], everything[name]) for name in predictions)


def test_an_unknown_task_is_refused_with_the_known_ones(model: MultiTaskModel) -> None:
    with pytest.raises(SimoError, match=r"unknown task\(s\) edges; this model has segmentation, depth, normals"):
        model(torch.rand(1, 3, *SIZE), ["depth", "edges"])


def test_an_aligner_changes_its_own_task_and_no_other(model: MultiTaskModel) -> None:
    images = torch.rand(1, 3, *SIZE)
    with torch.inference_mode():
        before = model(images)
        shaken(model, "normals")
        after = model(images)
    assert torch.equal(before["segmentation"], after["segmentation"])
    assert torch.equal(before["depth"], after["depth"])
    assert not torch.allclose(before["normals"], after["normals"])


def test_an_aligned_task_is_the_decoder_on_aligned_taps(model: MultiTaskModel) -> None:
    images = torch.rand(1, 3, 30, 45)
    aligner = shaken(model, "depth")
    with torch.inference_mode():
        raw = model.decoders["depth"](aligner(model.encoder(images)), (32, 48))
        assert torch.equal(model(images)["depth"], DEPTH.activate(raw[..., 1:31, 1:46]))


def test_the_images_of_a_batch_do_not_influence_each_other(model: MultiTaskModel) -> None:
    images = torch.rand(3, 3, 30, 45)
    with torch.inference_mode():
        together, alone = model(images), model(images[1:2])
    for name in TASKS:
        torch.testing.assert_close(together[name][1:2], alone[name])


# -- what belongs together --------------------------------------------------------------------------------------


def test_an_expert_is_a_model_of_one_task(experts: dict[str, SingleTaskModel]) -> None:
    assert experts["depth"].tasks == {"depth": DEPTH}
    assert experts["depth"].encoder_passes == 1


def test_every_task_needs_its_decoder(experts: dict[str, SingleTaskModel]) -> None:
    expert = experts["depth"]
    with pytest.raises(SimoError, match=r"decoders for \['depth'\] but tasks \['depth', 'normals'\]"):
        MultiTaskModel(expert.encoder, {"depth": expert.decoder}, {"depth": DEPTH, "normals": NORMALS})


def test_an_aligner_needs_its_task(experts: dict[str, SingleTaskModel]) -> None:
    expert = experts["depth"]
    aligner = Aligner("affine", expert.encoder.tap_channels, 1)
    with pytest.raises(SimoError, match=r"aligners for unknown tasks \['normals'\]; the tasks are \['depth'\]"):
        MultiTaskModel(expert.encoder, {"depth": expert.decoder}, {"depth": DEPTH}, {"normals": aligner})


@pytest.mark.parametrize("name", ["values", "type", "training"])
def test_a_task_may_not_have_a_name_that_torch_keeps_for_itself(name: str) -> None:
    encoder = Encoder(tiny_base().vit, "tiny")
    decoders = {name: build_decoder("linear", encoder, 1)}
    with pytest.raises(SimoError, match=rf"name\(s\) {name} for itself"):
        MultiTaskModel(encoder, decoders, {name: Regression(name=name)})


def test_a_model_without_aligners_says_so(model: MultiTaskModel) -> None:
    assert model.aligner("depth") is None
    aligner = shaken(model, "depth")
    assert model.aligner("depth") is aligner
