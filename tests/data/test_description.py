"""dataset.yaml: what it may say, and one readable line for what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from simo_merge.data.description import read_description
from simo_merge.data.labels import LABEL_KINDS
from simo_merge.errors import SimoError
from simo_merge.tasks import TASK_KINDS, Depth, Segmentation

DOCS = Path(__file__).parents[2] / "docs" / "own-data.md"
DEPTH = "name: x\ntasks: {depth: {kind: depth"


def described(folder: Path, text: str) -> Path:
    (folder / "dataset.yaml").write_text(text, encoding="utf-8")
    return folder


def test_the_example_of_the_documentation_is_valid(tmp_path: Path) -> None:
    example = DOCS.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    description = read_description(described(tmp_path, example))
    assert description.name == "street"
    tasks = {name: labels.task(name) for name, labels in description.tasks.items()}
    segmentation, depth = tasks["segmentation"], tasks["depth"]
    assert isinstance(segmentation, Segmentation)
    assert segmentation.colours[3] == (0, 0, 142)
    assert isinstance(depth, Depth)
    assert (depth.scale, depth.unit) == (12.0, "m")


def test_the_documentation_names_every_key() -> None:
    text = DOCS.read_text(encoding="utf-8")
    keys = {key for model in LABEL_KINDS.values() for key in model.model_fields}
    assert [key for key in sorted(keys) if f"`{key}`" not in text and f"`{key}:" not in text] == []


def test_there_are_labels_for_every_kind_of_task() -> None:
    assert LABEL_KINDS.keys() == TASK_KINDS.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            DEPTH + ", scal: 2}}",
            r"tasks\.depth: unknown key scal; the known ones are folder, suffix, .*scale",
        ),
        (DEPTH + "}}\nlicense: MIT", "unknown key license; the known ones are name, licence"),
        (DEPTH + "}}\nimages: {dir: a}", "images: unknown key dir; the known ones are folder, suffix"),
        (DEPTH + "}}\nimages: photos", "images: got 'photos', expected these keys: folder, suffix"),
        (DEPTH + ", scale: 0}}", r"tasks\.depth\.scale: .*scale of 0"),
        (DEPTH + ", bits: 12}}", r"tasks\.depth\.bits: .*12"),
        (DEPTH + ", typical: -1}}", r"tasks\.depth\.typical"),
        (DEPTH + ", suffix: png}}", r"tasks\.depth\.suffix"),
        (
            "name: x\ntasks: {d: {kind: deepth}}",
            "kind is 'deepth', expected one of segmentation, depth, disparity, normals",
        ),
        ("name: x\ntasks: {d: depth}", "kind is None"),
        ("name: x\ntasks: {s: {kind: segmentation}}", r"tasks\.s\.classes: Field required"),
        (
            "name: x\ntasks: {s: {kind: segmentation, classes: [a], invalid: [0]}}",
            r"\[0\] are also ids of classes",
        ),
        ("name: x\ntasks: {n: {kind: normals, axes: [right, down, front]}}", "unknown directions"),
        ("name: x\ntasks: {n: {kind: normals, axes: [right, left, up]}}", "one of right/left"),
        ("tasks: {d: {kind: depth}}", "name: Field required"),
        ("name: a b\ntasks: {d: {kind: depth}}", "name: String should match"),
        ("name: x\ntasks: {}", "at least one task"),
        ("name: x", "at least one task"),
        ("- name: x", "at least one task"),
        ("", "at least one task"),
        ("name: [x", "cannot be read as YAML"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SimoError, match=message) as caught:
        read_description(described(tmp_path, text))
    assert "dataset.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_description_is_told_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(SimoError, match=r"does not exist.*docs/own-data\.md.*images:DIR"):
        read_description(tmp_path)


def test_a_description_is_plain_data(tmp_path: Path) -> None:
    evil = "name: !!python/object/apply:os.getcwd []\ntasks: {d: {kind: depth}}"
    with pytest.raises(SimoError, match="cannot be read as YAML"):
        read_description(described(tmp_path, evil))
