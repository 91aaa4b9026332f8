"""`realign`: every method, where its pictures and experts come from, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import cast

import pytest

from simo_merge.checkpoints import load
from simo_merge.models import MultiTaskModel
from simo_merge.realign import REALIGNMENTS
from simo_merge.results import read_results
from tests.cli.conftest import Program, Refused
from tests.small_set import write_picture


def alignment(directory: Path) -> dict[str, object]:
    model = load(directory)
    assert isinstance(model, MultiTaskModel)
    assert model.merge is not None
    return dict(model.merge.alignment or {})


@pytest.mark.parametrize(
    ("options", "label", "labels"),
    [
        (["--rank", "3"], "surgery-stretched", 0),
        (["--method", "surgery", "--steps", "2", "--rank", "3"], "surgery", 0),
        (["--method", "surgery", "--steps", "2", "--start", "closed-form"], "surgery-from-closed-form", 0),
        (["--rank", "auto", "--ridge", "auto", "--reads", "all"], "surgery-stretched", 0),
        (["--rank", "none", "--ridge", "0.1"], "surgery-stretched", 0),
        (["--method", "auto", "--max-parameters", "none"], "auto-stretched", 0),
        (["--method", "auto", "--max-parameters", "2%", "--reads", "own"], "auto-stretched", 0),
        (["--method", "spatial", "--rank", "3", "--set", "directions=2", "--fold"], "spatial", 0),
        (["--method", "full-affine", "--fold"], "full-affine", 0),
        (["--method", "encoder-calibration", "--set", "layers=mlp.fc2"], "encoder-calibration", 0),
        (["--method", "encoder-adapters", "--rank", "2", "--set", "epochs=1"], "encoder-adapters", 0),
        (["--method", "encoder-norms", "--set", "epochs=1", "--lr", "1e-3"], "encoder-norms", 0),
        (["--method", "encoder-distilled", "--steps", "2", "--set", "augment=none"], "encoder-distilled", 0),
        (["--method", "surgery-v2", "--rank", "none", "--set", "from_block=4"], "surgery-v2", 0),
        (["--method", "surgery-v2-gradient", "--steps", "1", "--rank", "2"], "surgery-v2-gradient", 0),
        (["--method", "task-norms", "--set", "held_out=null"], "task-norms", 0),
        (["--method", "norm-recalibration"], "norm-recalibration", 0),
        (["--method", "batch-norm"], "batch-norm", 0),
        (["--method", "head", "--steps", "2"], "head", 6),
        (["--method", "head-distilled", "--steps", "2"], "head-distilled", 0),
        (["--rank", "3", "--objective", "decoder"], "surgery-stretched", 0),
        (["--rank", "3", "--stretch", "none"], "surgery-closed-form", 0),
        (["--method", "surgery-gradient", "--rank", "3", "--set", "epochs=1"], "surgery-gradient", 0),
        (["--method", "surgery-gradient", "--objective", "supervised", "--set", "epochs=1"], "surgery-gradient", 6),
        (["--rank", "3", "--stream"], "surgery-stretched", 0),
        (["--method", "auto", "--stream", "--stretch", "none"], "auto", 0),
    ],
)
def test_every_method_fits_and_says_what_it_cost(
    made: Path, data: str, program: Program, tmp_path: Path, options: list[str], label: str, labels: int
) -> None:
    output = tmp_path / "aligned"
    outcome = program("-q", "realign", made / "merged", "--data", data, *options, "--seed", 3, "-o", output)
    assert outcome.status == 0, outcome
    record = alignment(output)
    assert (record["method"], record["images"], record["labels"], record["seed"]) == (label, 6, labels, 3)
    assert f"({record['trainable_parameters']:,} parameters fitted to 6 images in " in outcome.out
    errors, kept = (record.get(f"errors_{name}", record.get(f"epochs_{name}")) for name in ("held_out", "kept"))
    kept = record.get("steps_kept", kept)
    assert ("error on held-out images: " in outcome.out) == (errors is not None)
    if errors is not None:
        assert f"held-out images: {errors[0]:.4g}{f', after {kept} ' if kept else '; no '}" in outcome.out
        told = f", which are kept, {min(errors):.4g}\n" if kept else "; no "
        assert told in outcome.out


def test_features_are_kept_in_files_and_found_again(
    made: Path, data: str, program: Program, refused: Refused, tmp_path: Path
) -> None:
    kept = ["--capture-dir", tmp_path / "features", "--capture-dtype", "bfloat16"]
    for name in ("one", "two"):
        assert program("-q", "realign", made / "merged", "--data", data, *kept, "-o", tmp_path / name).status == 0
    assert len(list((tmp_path / "features").glob("*/features.bin"))) == 4  # the merged encoder's and three experts'
    ours, theirs = (load(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    said = refused("realign", made / "merged", "--data", data, "--stream", *kept, "-o", tmp_path / "three")
    assert "a stream keeps no features" in said


def test_choices_and_distances_name_the_blocks_that_taps_read(
    made: Path, data: str, program: Program, tmp_path: Path
) -> None:
    outcome = program("-q", "realign", made / "merged", "--data", data, "--method", "auto", "-o", tmp_path / "aligned")
    lines = [line.split() for line in outcome.out.splitlines()]
    taps = [str(tap) for tap in cast(MultiTaskModel, load(tmp_path / "aligned")).encoder.taps]
    heads = [index for index, words in enumerate(lines) if words[:2] == ["task", "block"]]
    assert [[words[1] for words in lines[head + 1 : head + 1 + len(taps)]] for head in heads] == [taps, taps]


def test_of_a_stream_the_distances_that_moments_tell_are_shown(
    made: Path, data: str, program: Program, tmp_path: Path
) -> None:
    outcome = program("-q", "realign", made / "merged", "--data", data, "--stream", "-o", tmp_path / "aligned")
    assert "explained before -> after" in outcome.out
    assert "L1" not in outcome.out
    assert alignment(tmp_path / "aligned")["streamed"]


def test_a_calibrated_encoder_is_aligned_by_a_second_call_and_inspect_tells_of_both(
    made: Path, data: str, program: Program, tmp_path: Path
) -> None:
    first, second = tmp_path / "calibrated", tmp_path / "aligned"
    outcome = program("-q", "realign", made / "merged", "--data", data, "--method", "encoder-calibration", "-o", first)
    assert "held-out error before -> after" in outcome.out
    assert program("-q", "realign", first, "--data", data, "--rank", "3", "-o", second).status == 0
    record = alignment(second)
    assert record["method"] == "encoder-calibration+surgery-stretched"
    assert record["before"] == alignment(first)
    told = program("inspect", second).out.splitlines()
    assert ["encoder", "passes", "1"] in [line.split() for line in told]
    assert "encoder-calibration+surgery-stretched (rank 3, ridge 0.01, reads own, " in told[-1]
    assert "): 6 images" in told[-1]


def test_tasks_with_blocks_of_their_own_say_what_they_cost_and_take_an_aligner(
    made: Path, data: str, program: Program, tmp_path: Path
) -> None:
    first, second = tmp_path / "specific", tmp_path / "aligned"
    options = ("--method", "surgery-v2", "--rank", "3", "--set", "from_block=4", "--set", "held_out=null")
    outcome = program("-q", "realign", made / "merged", "--data", data, *options, "-o", first)
    assert "encoder passes for all tasks of an image: 1.67\n" in outcome.out
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["depth", "4", "100%", "-"] in lines
    assert program("-q", "realign", first, "--data", data, "--rank", "3", "-o", second).status == 0
    record = alignment(second)
    assert record["method"] == "surgery-v2+surgery-stretched"
    assert record["before"] == alignment(first)
    told = program("inspect", second).out
    assert ["encoder", "passes", "1.67"] in [line.split() for line in told.splitlines()]
    assert "; changes of blocks 4-5, 1." in told
    assert json.loads(program("inspect", second, "--json").out)["tasks"]["depth"]["changed_blocks"] == [4, 5]
    rows = program("-q", "evaluate", second, "--data", data, "--split", "val", "--json", tmp_path / "rows.json")
    assert rows.status == 0, rows
    assert read_results(tmp_path / "rows.json")[1][-1].encoder_passes == pytest.approx(1.6667)


def test_pictures_of_other_sizes_are_brought_to_the_size_of_training(
    made: Path, program: Program, tmp_path: Path
) -> None:
    write_picture(tmp_path / "photos" / "wide.png", size=(20, 70))
    write_picture(tmp_path / "photos" / "tall.jpg", size=(70, 20))
    (tmp_path / "photos" / "notes.txt").write_text("no picture", encoding="utf-8")
    pictures = tmp_path / "photos"
    for number, given in enumerate((["--images", pictures], ["--data", f"images:{pictures}", "--size", "16x32"])):
        output = tmp_path / f"aligned-{number}"
        assert program("-q", "realign", made / "merged", *given, "-o", output).status == 0
        assert alignment(output)["images"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give either --images DIR"),
        (["--images", "photos", "--data", "rooms"], "give either --images DIR"),
        (["--images", "nowhere"], "nowhere is not a folder"),
        (["--data", "nowhere"], "neither a folder nor one of the known formats"),
        (["--data", "set", "--split", "gone"], "the splits there are: calibration, test, train, val"),
        (["--data", "set", "--size", "16x16"], "--size is for --images"),
        (
            ["--images", "photos", "--size", "nonsense"],
            "a size is HEIGHTxWIDTH, like 126x168",
        ),
        (["--images", "photos", "--size", "0x16"], "got '0x16'"),
        (["--images", "photos", "--method", "magic"], "unknown re-alignment 'magic'; known: auto, batch-norm"),
        (["--images", "photos", "--method", "batch-norm", "--rank", "4"], "batch-norm has no option rank; it has none"),
        (["--images", "photos", "--rank", "0"], "rank of surgery must be 1 or more"),
        (["--images", "photos", "--ridge", "0"], "ridge must be positive"),
        (["--images", "photos", "--ridge", "none"], "--ridge is a positive number or auto; got 'none'"),
        (["--images", "photos", "--ridge", "nan"], "ridge must be positive"),
        (["--images", "photos", "--method", "surgery", "--lr", "nan"], "lr positive; got 500, 16, nan"),
        (["--data", "set", "--split", "train", "--method", "head", "--lr", "inf"], "lr positive"),
        (["--images", "photos", "--method", "auto", "--set", "budget=nan"], "a share of the encoder's or a number"),
        (["--images", "photos", "--rank", "many"], "a whole number, None or 'auto' as rank"),
        (["--images", "photos", "--rank", "none", "--set", "rank=5"], "--rank and --set rank=... are one thing"),
        (
            ["--images", "photos", "--method", "auto", "--max-parameters", "1%", "--set", "budget=none"],
            "--max-parameters and --set budget=... are one thing; give one of them",
        ),
        (["--images", "photos", "--method", "auto", "--max-parameters", "120%"], "a percentage of the encoder's below"),
        (
            ["--images", "photos", "--max-parameters", "1%"],
            "surgery-closed-form has no option budget; its options",
        ),
        (["--images", "photos", "--method", "surgery", "--start", "middle"], "'zero' or at 'closed-form'"),
        (["--images", "photos", "--objective", "magic"], "'features' or 'decoder', got 'magic'"),
        (["--images", "photos", "--method", "surgery-gradient", "--objective", "magic"], "known: feature-l1, "),
        (
            ["--images", "photos", "--method", "head"],
            "head needs labels for segmentation, depth, normals, and photos",
        ),
        (["--data", "set", "--split", "test", "--method", "head"], "those of the test split are for the last word"),
        (["--images", "photos", "--device", "banana"], "unknown device 'banana'"),
        (["--images", "photos", "--capture-dtype", "float16"], "name their folder with --capture-dir"),
        (["--images", "photos", "--capture-dir", "DIR", "--capture-dtype", "int8"], "features are kept as float32, fl"),
        (["--images", "photos", "--method", "spatial", "--stream"], "cannot be streamed; capture features instead"),
    ],
)
def test_wrong_options_are_refused(made: Path, refused: Refused, options: list[str], said: str) -> None:
    places = {"photos": str(made / "photos"), "set": f"folder:{made / 'set'}"}
    assert said in refused("realign", made / "merged", *(places.get(o, o) for o in options), "-o", "OUT")


def test_fitting_to_test_pictures_is_allowed_but_told(made: Path, data: str, program: Program, tmp_path: Path) -> None:
    outcome = program("-q", "realign", made / "merged", "--data", data, "--split", "test", "-o", tmp_path / "aligned")
    assert outcome.status == 0
    assert outcome.err == "fitting to the test split's pictures: scores on that split will flatter the model\n"


def test_only_a_merged_model_that_is_not_aligned_yet_is_taken(made: Path, refused: Refused) -> None:
    images = ("--images", made / "photos", "-o", "OUT")
    assert "is a single-task model; a merged model is needed here" in refused("realign", made / "depth", *images)
    assert "aligned already" in refused("realign", made / "aligned", *images)


def test_pictures_that_cannot_be_read_are_named(made: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no pictures in" in refused("realign", made / "merged", "--images", tmp_path / "empty", "-o", "OUT")
    photos = Path(shutil.copytree(made / "photos", tmp_path / "photos"))
    (photos / "z.jpg").write_text("not a picture", encoding="utf-8")
    said = refused("realign", made / "merged", "--images", photos, "-o", "OUT")
    assert f"{photos / 'z.jpg'} cannot be read as a picture" in said
    whole = (photos / "photo-0.jpg").read_bytes()
    (photos / "z.jpg").write_bytes(whole[: len(whole) // 2])
    said = refused("realign", made / "merged", "--images", photos, "-o", "OUT")
    assert f"{photos / 'z.jpg'} cannot be read as a picture" in said
    assert "truncated" in said


# -- where the experts are --------------------------------------------------------------------------------------


@pytest.fixture
def moved(made: Path, tmp_path: Path) -> Path:
    """A copy of the merged model that records experts of places that do not exist."""
    directory = tmp_path / "moved" / "merged"
    shutil.copytree(made / "merged", directory)
    config = directory / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace(str(made), "gone"), encoding="utf-8")
    return directory


def test_experts_that_moved_with_the_model_are_found_beside_it(
    made: Path, moved: Path, program: Program, tmp_path: Path
) -> None:
    for task in ("segmentation", "depth", "normals"):
        shutil.copytree(made / task, moved.parent / task)
    assert program("-q", "realign", moved, "--images", made / "photos", "-o", tmp_path / "aligned").status == 0


def test_experts_that_are_not_found_are_asked_for(
    made: Path, moved: Path, program: Program, refused: Refused, tmp_path: Path
) -> None:
    arguments = ["realign", moved, "--images", made / "photos"]
    said = refused(*arguments, "-o", "OUT")
    assert "was merged from gone/segmentation (segmentation), which is not there any more" in said
    assert "give all experts with --experts" in said
    given = [part for task in ("normals", "depth", "segmentation") for part in ("--experts", made / task)]
    assert program("-q", *arguments, *given, "-o", tmp_path / "aligned").status == 0
    assert "--experts once for each task" in refused(*arguments, *given[:4], "-o", "OUT")
    assert "--experts once for each task" in refused(*arguments, *given, *given[:2], "-o", "OUT")


def test_an_expert_that_was_not_merged_is_refused(
    made: Path, data: str, program: Program, refused: Refused, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    arguments = ["--task", "depth", "--data", data, "--encoder", "test_vit", "--weights", "random"]
    short = ["--decoder", "linear", "--decoder-steps", 0, "--steps", 1, "--batch-size", 2]
    assert program("-q", "train", *arguments, *short, "-o", other).status == 0
    given = [part for path in (made / "segmentation", other, made / "normals") for part in ("--experts", path)]
    said = refused("realign", made / "merged", "--images", made / "photos", *given, "-o", "OUT")
    assert f"the expert in {other} is not the depth expert that {made / 'merged'} was merged from" in said


def test_every_method_is_listed_with_its_options_and_needs(program: Program) -> None:
    outcome = program("realign", "--list-methods")
    assert outcome.status == 0
    for name in REALIGNMENTS:
        assert f"\n{name}: " in f"\n{outcome.out}"
    for said in ("rank=64, ridge=0.01", "budget=0.1", "needs labels;", "up to one encoder pass a task"):
        assert said in outcome.out


def test_what_cannot_be_folded_is_named(made: Path, program: Program, tmp_path: Path) -> None:
    asked = ("realign", made / "merged", "--images", made / "photos", "--fold", "-o")
    whole = program(*asked, tmp_path / "whole")
    assert "not folded" not in whole.out
    left = program(*asked, tmp_path / "left", "--method", "surgery", "--steps", "2")
    model = load(tmp_path / "left")
    assert isinstance(model, MultiTaskModel)
    assert f"not folded, for their decoders cannot take them in exactly: {', '.join(model.tasks)}\n" in left.out
    assert set(model.aligners) == set(model.tasks)
