"""Re-alignment's quality from end to end on a small set, and the demands that it is held against."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import realign_quality
from bench.checks import Fit, best_label_free, checks, gains
from bench.controls import predicted
from bench.parts import Part, distinct, drawn, open_part
from bench.recipe import Align
from bench.recipe_file import RECIPES, read_recipe
from simo_merge.errors import SimoError
from simo_merge.results import ResultRow, read_results
from tests.benchmarks.worlds import CLOSED_FORM, HEAD, made_up, write_recipe
from tests.small_set import SPLITS
from tests.tiny import DEPTH, SEGMENTATION, TinyData, tiny_base, tiny_expert

TASKS = ("segmentation", "depth", "normals")
QUALITY: dict[str, Any] = {
    "data": {"calibration": "calibration+train"},
    "quality": {"images": 6, "base": ["head"], "fine_tuned": "weight-average"},
    "samples": {
        "merge": "weight-average",
        "counts": [2, 6, 50],
        "align": [CLOSED_FORM, HEAD, HEAD | {"label": "once", "counts": [50]}],
        "joint": [],
    },
}


@pytest.fixture(scope="module")
def found(folder: Path, data: str) -> list[ResultRow]:
    recipe, output = write_recipe(folder / "quality.yaml", QUALITY), folder / "quality.json"
    assert realign_quality.main(["--data", data, "--recipe", str(recipe), "--output", str(output)]) == 0
    return read_results(output)[1]


def test_the_controls_stand_beside_the_merges(found: list[ResultRow]) -> None:
    row = {r.method: r for r in found if realign_quality.table_rows([r], 6)}
    assert {"experts", "base", "joint-equal", "base+head", "weight-average+surgery-closed-form"} <= row.keys()
    supervised, taught = (row[f"weight-average+fine-tuning{name}"] for name in ("", "-to-experts"))
    assert (supervised.labels, taught.labels) == (6, 0)
    assert taught.images == 6
    assert supervised.steps == taught.steps == 2  # those of the experts, without their decoders' own
    assert supervised.trainable_parameters == row["joint-equal"].trainable_parameters
    assert row["base+head"].labels == 6
    alone, joint = row["experts+head"], row["joint-equal+head"]
    assert alone.images == alone.options["fitted_to"] == 6  # of the calibration split, so no label is read twice
    assert alone.labels == joint.labels == joint.images == 6 + SPLITS["train"]
    assert all("validation_delta" in r.options for name, r in row.items() if name != "experts")


def test_the_curve_goes_on_into_the_training_split_without_its_labels(found: list[ResultRow]) -> None:
    whole = SPLITS["calibration"] + SPLITS["train"]
    curve = realign_quality.curve_rows(found, "weight-average", 6)
    for name, labelled in (("surgery-closed-form", False), ("head", True)):
        same = [row for row in curve if row.method == f"weight-average+{name}"]
        assert sorted(row.options["fitted_to"] for row in same) == [2, 6, whole]
        assert all(row.labels == (row.options["fitted_to"] if labelled else 0) for row in same)
        assert all(row.images == row.options["fitted_to"] for row in same)
    assert not [row for row in curve if "fine-tuning" in row.method]
    (once,) = (row for row in curve if row.method == "weight-average+once")
    assert once.options["fitted_to"] == whole
    assert once not in realign_quality.curve_rows(found, "weight-average", whole)


def test_a_merge_looks_at_no_more_images_than_the_table_is_about(folder: Path, data: str) -> None:
    changes = QUALITY | {
        "merges": [{"method": "weight-average"}, {"method": "task-arithmetic", "choose": {"scale": [0.2, 0.5]}}],
        "align": [CLOSED_FORM, HEAD],
        "budget": None,
        "samples": None,
    }
    recipe, output = write_recipe(folder / "looked.yaml", changes), folder / "looked.json"
    assert realign_quality.main(["--data", data, "--recipe", str(recipe), "--output", str(output)]) == 0
    row = next(r for r in read_results(output)[1] if r.method == "task-arithmetic")
    assert (row.images, row.labels) == (6, 0)


def test_a_re_alignment_may_come_after_one_inside_the_encoder(folder: Path, data: str) -> None:
    behind = {"method": "norm-recalibration", "after": {"method": "task-norms", "options": {"from_block": 2}}}
    trained = {
        "method": "surgery",
        "options": {"rank": 2, "steps": 3},
        "after": {"method": "encoder-distilled", "options": {"steps": 2, "augment": None}},
    }
    changes = QUALITY | {"align": [behind, trained], "budget": None, "samples": None, "align_experts": []}
    changes |= {"joint": {"rows": [{"weighting": "equal"}]}, "merges": [{"method": "weight-average"}]}
    changes["quality"] = {"images": 6}
    recipe, output = write_recipe(folder / "after.yaml", changes), folder / "after.json"
    assert realign_quality.main(["--data", data, "--recipe", str(recipe), "--output", str(output)]) == 0
    row, both = (r for r in read_results(output)[1] if "+" in r.method)
    assert row.method == "weight-average+task-norms+norm-recalibration"
    assert 1 < row.encoder_passes < 3
    assert (row.steps, both.steps) == (0, 2 + 3)
    assert both.options["before"]["method"] == "encoder-distilled"
    assert "after" not in Align(method="head").model_dump(mode="json")  # rows without one stay what they are


def test_the_report_has_table_curve_and_demands(found: list[ResultRow], folder: Path) -> None:
    told = realign_quality.report(found, read_recipe(folder / "quality.yaml"))
    for expected in (
        "| base+head |",
        "2 images | 6 images | 12 images",
        "chosen on the validation split: ",
        "| demand |",
    ):
        assert expected in told
    assert told.count("| weight-average+surgery-closed-form |") == 2  # once in the table, once in the curve


def test_what_the_best_took_is_told_with_its_merge_and_its_features(folder: Path) -> None:
    seconds = {"merge_seconds": 10.0, "capture_seconds": 200.0}
    rows = [
        scored("experts", 0, 0.5, 0.25, fit_seconds=7000.0),
        scored("weight-average", 0, 0.4, 0.3),
        scored("weight-average+a", 0, 0.5, 0.25, fit_seconds=3.0, **seconds, options={"validation_delta": 1.0}),
        scored("joint-equal", 0, 0.5, 0.25, labels=9, fit_seconds=900.0),
    ]
    told = realign_quality.report(rows, read_recipe(write_recipe(folder / "told.yaml", QUALITY)))
    assert "to the aligned model 213 s; joint-equal was trained in 900 s." in told


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("path", sorted((RECIPES / "realign").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_recipe_is_valid(path: Path, quick: bool) -> None:
    recipe = read_recipe(path, quick)
    assert recipe.name == path.stem
    assert recipe.quality is not None
    joint = recipe.joint_config(recipe.joint.rows[0], 0)
    expert = recipe.train_config(0)
    assert (joint.decoder_steps, joint.steps) == (expert.decoder_steps, expert.steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quality": {"base": ["hed"]}}, "no re-alignment 'hed'.*did you mean head"),
        ({"quality": {"fine_tuned": "tise"}}, "no merge 'tise'"),
        ({"quality": {"fine_tuning": {"stesp": 3}}}, "stesp.*did you mean steps"),
        ({"data": {"calibration": "train+test"}}, r"calibration is 'train\+test', the test split"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    whole = {key: value | changes.get(key, {}) if isinstance(value, dict) else value for key, value in QUALITY.items()}
    with pytest.raises(SimoError, match=message):
        read_recipe(
            write_recipe(tmp_path / "recipe.yaml", whole | {k: v for k, v in changes.items() if k not in whole})
        )


# -- parts ------------------------------------------------------------------------------------------------------------


def test_an_image_that_is_in_two_sets_counts_once_and_keys_are_those_of_a_split(data: str) -> None:
    train, calibration = (open_part(data, {}, split, TASKS) for split in ("train", "calibration"))
    whole = drawn(open_part(data, {}, "calibration+train", TASKS), 0)
    assert distinct(train, calibration) == len(train) + len(calibration)
    assert distinct(whole, train) == len(whole)
    assert distinct(calibration, Part(whole, range(len(calibration)))) == len(calibration)
    assert distinct() == 0
    numbered = [SimpleNamespace(split=split, keys=("0", "1", "2")) for split in ("train", "val")]
    assert distinct(*numbered, Part(numbered[0], [1, 1])) == 6  # type: ignore[arg-type]


def test_joined_splits_follow_one_another_each_in_an_order_of_the_seed(data: str) -> None:
    joined = open_part(data, {}, "calibration+train[:4]", ["depth"])
    first, second = (open_part(data, {}, split, ["depth"]) for split in ("calibration", "train[:4]"))
    assert joined.keys == (*first.keys, *second.keys)
    assert joined.split == "calibration+train[:4]"
    assert [joined[i].key for i in range(len(joined))] == list(joined.keys)
    with pytest.raises(IndexError):
        joined[len(joined)]
    for seed in (0, 1):
        order = drawn(joined, seed).keys
        assert order[: len(first)] == drawn(first, seed).keys
        assert sorted(order[len(first) :]) == sorted(second.keys)
    assert drawn(joined, 0).keys != drawn(joined, 1).keys


def test_experts_label_images_with_what_they_predict() -> None:
    base, images = tiny_base(), TinyData(5)
    experts = [tiny_expert(SEGMENTATION, base, 1), tiny_expert(DEPTH, base, 2)]
    taught = predicted(images, experts, torch.device("cpu"), "float32", batch_size=2)
    assert len(taught) == 5
    for i in range(5):
        with torch.no_grad():
            logits, depth = (expert(images[i].image[None])[0] for expert in experts)
        sample = taught[i]
        assert torch.equal(sample.targets["segmentation"], logits.argmax(0))
        assert torch.allclose(sample.targets["depth"], depth, atol=1e-5)
        assert all(mask.all() for mask in sample.masks.values())
        assert sample.key == images[i].key


# -- demands ----------------------------------------------------------------------------------------------------------


def scored(method: str, seed: int, miou: float, error: float, **changes: Any) -> ResultRow:
    per_task = {"segmentation": {"miou": miou}, "depth": {"abs": error}}
    delta = 100 * ((miou / 0.5 - 1) + (0.25 / error - 1)) / 2
    return made_up(method, delta, seed=seed, per_task=per_task, **changes)


def test_gains_are_the_terms_of_delta(found: list[ResultRow]) -> None:
    experts = next(row for row in found if row.method == "experts")
    for row in found:
        terms = gains(row, experts)
        assert sum(terms.values()) / len(terms) == pytest.approx(row.delta_ratio, abs=1e-6)


def test_the_best_is_chosen_by_validation_among_what_needs_no_label_and_one_pass() -> None:
    def row(method: str, validation: float, images: int = 8, **changes: Any) -> ResultRow:
        return made_up(method, 0.0, options={"validation_delta": validation, "fitted_to": images}, **changes)

    rows = [
        row("m", 9.0),
        row("m+a", -3.0),
        row("m+b", -1.5),
        row("m+b", -1.0, images=64),
        row("m+head", 1.0, labels=100),
        row("m+surgery-v2", 2.0, encoder_passes=3),
        row("m+fine-tuning-to-experts", 3.0),
        row("base+a", 4.0),
        made_up("m+c", 5.0),
    ]
    assert best_label_free(rows) == Fit("m+b", 64)
    assert best_label_free([*rows, row("m+a", -3.0, seed=1)]) == Fit("m+a", 8)  # the only one that both seeds have
    assert best_label_free(rows[:1]) is None


NOT_COUNTED: dict[str, dict[str, Any]] = {
    "m+head": {"labels": 9},
    "m+surgery-v2": {"encoder_passes": 2},
    "m+fine-tuning-to-experts": {},
    "base+surgery": {},
}


def test_demands_are_met_where_they_are() -> None:
    rows = [
        *(scored("experts", s, 0.5, 0.25) for s in (0, 1)),
        *(scored("joint-equal", s, 0.49, 0.25, labels=9) for s in (0, 1)),
        *(scored("m", s, 0.4, 0.3) for s in (0, 1)),
        *(scored("m+good", s, 0.495, 0.25, options={"fitted_to": 64}) for s in (0, 1)),
        *(scored("m+good", s, 0.1, 0.9, options={"fitted_to": 8}) for s in (0, 1)),
        scored("m+bad", 0, 0.46, 0.25),
        scored("m+bad", 1, 0.46, 0.31),
        *(scored(name, 0, 0.1, 0.9, **changes) for name, changes in NOT_COUNTED.items()),
    ]
    *good, every = checks(rows, Fit("m+good", 64), "joint-equal")
    assert [check.verdict for check in good] == ["met"] * 5
    assert good[0].measured.endswith("; of 2 seeds at or above it: 2")
    assert (every.demand, every.verdict) == ("those below it of all 3 such fits, points", "")
    assert every.measured == ("m+good, 8 images: −60.0 (segmentation, seed 0); m+bad, 0 images: −2.7 (depth, seed 1)")
    *bad, _ = checks(rows, Fit("m+bad", 0), "joint-equal")
    assert [check.verdict for check in bad] == ["not met"] * 5
    assert bad[0].measured.endswith("of 2 seeds at or above it: 0")
    assert "(depth, seed 1)" in bad[-1].measured
    assert bad[2].measured == "−8.0 ± 0.0; −8.0 at the least (seed 0)"
    assert bad[3].measured == "−9.7 ± 13.7; −19.4 at the least (seed 1)"
    of_good = [row for row in rows if row.method != "m+bad" and row.options.get("fitted_to") != 8]
    assert checks(of_good, Fit("m+good", 64), "joint-equal")[-1].measured == "none"
    with pytest.raises(SimoError, match=r"m has no row, which m\+good, 64 images is compared with"):
        checks([row for row in rows if row.method != "m"], Fit("m+good", 64), "joint-equal")
