"""Options of training are checked at the door, and a recipe's name changes with all that decides the weights."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from simo_merge.errors import SimoError
from simo_merge.models import BaseRecord
from simo_merge.tasks import Depth
from simo_merge.training import AUGMENTATIONS, JointConfig, TrainConfig
from simo_merge.training.config import data_fingerprint, expert_recipe, recipe_hash, training_options
from tests.tiny import DEPTH, NORMALS, TinyData

OTHER: dict[str, Any] = {
    "decoder": "linear",
    "decoder_options": {"fusion_channels": 8},
    "decoder_steps": 101,
    "steps": 301,
    "batch_size": 9,
    "decoder_lr": 2e-3,
    "encoder_lr": 6e-5,
    "weight_decay": 0.0,
    "warmup": 0.1,
    "clip": 1.0,
    "augment": "mtan",
    "precision": "float32",
    "seed": 1,
    "accumulate": 2,
    "checkpointing": True,
    "compile": True,
}
RECORD = BaseRecord("vit", "timm:tag", "0" * 64)


def recipe(
    data: TinyData | None = None,
    task: Depth = DEPTH,
    base: BaseRecord = RECORD,
    taps: tuple[int, ...] = (1, 3),
    config: TrainConfig | None = None,
) -> str:
    return recipe_hash(expert_recipe(data or TinyData(4, (task,)), task, base, taps, config or TrainConfig()))


# -- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"decoder_lr": -1e-3}, "decoder_lr must be positive"),
        ({"encoder_lr": float("nan")}, "encoder_lr must be positive, got nan"),
        ({"clip": float("inf")}, "clip must be positive, got inf"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"decoder_steps": -1}, "decoder_steps and steps must be 0 or more"),
        ({"decoder_steps": 0, "steps": 0}, "not both 0; got 0, 0"),
        ({"warmup": 0.0}, "warmup is a share of a stage, between 0 and 1; got 0.0"),
        ({"warmup": 1.0}, "warmup is a share"),
        ({"decoder": "unet"}, "unknown decoder 'unet'; known: dpt, linear"),
        ({"augment": "cutmix"}, "unknown augmentation 'cutmix'; known: default, mtan, simo, none"),
        ({"precision": "float16"}, "unknown precision 'float16'; known: auto, float32, bfloat16"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_lr": "1e-3"}, "decoder_lr must be a number, got '1e-3'; YAML reads 1e-3 as text, write 1.0e-3"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"clip": None}, "clip must be a number, got None"),
        ({"decoder": ["dpt"]}, r"decoder must be text, got \['dpt'\]"),
        ({"compile": "no"}, "compile must be true or false, got 'no'"),
        ({"distill": "much"}, "distill must be a number, got 'much'$"),
    ],
)
def test_options_of_another_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SimoError, match=message):
        JointConfig(**options)


def test_a_whole_number_is_a_number() -> None:
    assert TrainConfig(clip=1).clip == 1


# -- recipes ----------------------------------------------------------------------------------------------------


def test_the_same_recipe_has_the_same_name_every_time() -> None:
    assert recipe() == recipe()
    assert len(recipe()) == 16


def test_every_option_has_another_value_to_try() -> None:
    assert OTHER.keys() == {field.name for field in fields(TrainConfig)}


@pytest.mark.parametrize("option", OTHER)
def test_every_option_of_training_changes_the_name(option: str) -> None:
    assert getattr(TrainConfig(), option) != OTHER[option]
    assert recipe(config=replace(TrainConfig(), **{option: OTHER[option]})) != recipe()


def test_recipes_write_the_first_two_augmentations_as_the_answers_to_a_question() -> None:
    """So they did before augmentations had names; written otherwise, cached experts would be trained again."""

    def written(name: str) -> object:
        config = TrainConfig(augment=name)
        return expert_recipe(TinyData(1, (DEPTH,)), DEPTH, RECORD, (1, 3), config)["training"]["augment"]

    assert [written(name) for name in AUGMENTATIONS] == [True, "mtan", "simo", False]


def test_options_that_recipes_are_older_than_are_written_only_where_they_are_used() -> None:
    """Else cached experts would be trained again."""
    options = training_options(TrainConfig())
    assert options == {
        "decoder": "dpt",
        "decoder_options": {},
        "decoder_steps": 100,
        "steps": 300,
        "batch_size": 8,
        "decoder_lr": 1e-3,
        "encoder_lr": 5e-5,
        "weight_decay": 1e-4,
        "warmup": 0.05,
        "clip": 25.0,
        "augment": True,
        "precision": "auto",
        "seed": 0,
    }
    assert training_options(TrainConfig(accumulate=2)) == {**options, "accumulate": 2}


def test_base_taps_and_task_change_the_name() -> None:
    others = [
        recipe(base=replace(RECORD, sha256="1" * 64)),
        recipe(base=replace(RECORD, name="other")),
        recipe(taps=(1, 2)),
        recipe(task=Depth(loss_name="l2")),
    ]
    assert len({recipe(), *others}) == 5


def test_where_the_base_came_from_does_not_matter_when_the_weights_are_the_same() -> None:
    assert recipe(base=replace(RECORD, source="file:base.safetensors")) == recipe()


def test_a_recipe_survives_json() -> None:
    made = expert_recipe(TinyData(4, (DEPTH,)), DEPTH, RECORD, (1, 3), TrainConfig(decoder_options={"a": (1, 2)}))
    assert recipe_hash(json.loads(json.dumps(made))) == recipe_hash(made)


def test_every_part_of_the_data_changes_the_name() -> None:
    renamed, split, shorter = TinyData(4, (DEPTH,)), TinyData(4, (DEPTH,)), TinyData(3, (DEPTH,))
    renamed.name, split.split = "other", "train"
    images, targets, masks, keys = (TinyData(4, (DEPTH,)) for _ in range(4))
    images.samples[2].image[0, 5, 7] += 0.01
    targets.samples[1].targets["depth"][0, 5, 7] += 0.01
    masks.samples[3].masks["depth"][0, 0] ^= True
    keys.keys = (*keys.keys[:3], "renamed")
    others = [recipe(data) for data in (renamed, split, shorter, images, targets, masks, keys)]
    others.append(recipe(TinyData(4, (DEPTH,), size=(48, 32))))
    assert len({recipe(), *others}) == 9


def test_labels_of_other_tasks_do_not_change_the_name() -> None:
    with_more = TinyData(4, (DEPTH, NORMALS))
    fingerprint = data_fingerprint(with_more, "depth")
    with_more.samples[0].targets["normals"].zero_()
    assert data_fingerprint(with_more, "depth") == fingerprint


def test_at_most_eight_images_are_read_the_first_and_the_last_among_them() -> None:
    data, read = TinyData(30, (DEPTH,)), []

    class Counting(TinyData):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return data[index]

    data_fingerprint(Counting(30, (DEPTH,)), "depth")
    assert len(read) == 8
    assert read == sorted(set(read))
    assert (read[0], read[-1]) == (0, 29)
