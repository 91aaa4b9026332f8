"""Output directories appear whole or not at all, and nothing is replaced unasked."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from simo_merge.checkpoints import load, model_fingerprint, prepare_output, save, written_directory
from simo_merge.errors import SimoError
from simo_merge.models import SingleTaskModel
from simo_merge.tasks import Depth
from tests.named import named_expert

SAVE_MODULE = importlib.import_module("simo_merge.checkpoints.save")  # the room's `save` is the function


class Interrupted(BaseException):
    """As a KeyboardInterrupt, no ordinary exception."""


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_missing_parents_are_made_and_an_empty_directory_is_filled(expert: SingleTaskModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for directory in (tmp_path / "a" / "b", tmp_path / "empty"):
        assert save(expert, directory) == directory
        load(directory)


def test_who_may_read_the_config_may_read_the_weights(expert: SingleTaskModel, tmp_path: Path) -> None:
    directory = save(expert, tmp_path / "model")
    modes = {file.stat().st_mode for file in directory.iterdir()}
    assert len(modes) == 1


def test_a_directory_with_content_is_not_replaced_unasked(expert: SingleTaskModel, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SimoError, match="exists and is not empty; choose another or pass --overwrite"):
        save(expert, tmp_path)
    assert listing(tmp_path) == ["notes.txt"]


def test_a_file_is_never_replaced(expert: SingleTaskModel, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine", encoding="utf-8")
    with pytest.raises(SimoError, match="is a file; the output must be a directory"):
        save(expert, tmp_path / "model", overwrite=True)


def test_overwriting_leaves_nothing_of_the_old(expert: SingleTaskModel, tmp_path: Path) -> None:
    save(named_expert(Depth()), tmp_path / "model")
    (tmp_path / "model" / "model-00001-of-00002.safetensors").write_text("old", encoding="utf-8")
    save(expert, tmp_path / "model", overwrite=True)
    assert load(tmp_path / "model").tasks.keys() == {"segmentation"}
    assert listing(tmp_path / "model") == ["README.md", "config.json", "model.safetensors"]
    assert listing(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [OSError, Interrupted])
def test_a_save_that_fails_leaves_nothing(
    expert: SingleTaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setattr(SAVE_MODULE, "model_card", raising(error))
    with pytest.raises(error):
        save(expert, tmp_path / "model")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("error", [OSError, Interrupted])
def test_a_save_that_fails_keeps_the_old(
    expert: SingleTaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    old = named_expert(Depth())
    save(old, tmp_path / "model")
    monkeypatch.setattr(SAVE_MODULE, "model_card", raising(error))
    with pytest.raises(error):
        save(expert, tmp_path / "model", overwrite=True)
    assert listing(tmp_path) == ["model"]
    assert model_fingerprint(load(tmp_path / "model")) == model_fingerprint(old)


def test_the_old_comes_back_when_the_last_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("old", encoding="utf-8")
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="no space"), written_directory(tmp_path / "model", overwrite=True) as folder:
        (folder / "new.txt").write_text("new", encoding="utf-8")
    assert listing(tmp_path) == ["model"]
    assert listing(tmp_path / "model") == ["README.md"]


def test_the_current_folder_may_be_the_output_when_it_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with written_directory(".") as folder:
        (folder / "new.txt").write_text("new", encoding="utf-8")
    assert listing(tmp_path / "here") == ["new.txt"]


@pytest.mark.parametrize(
    "files",
    [
        ["notes.txt"],
        ["README.md", "thesis.tex"],
        ["model.safetensors", "config.json"],  # of another program
        ["runs/depth/model.safetensors"],  # a folder of outputs is none
        ["image.png"],
        ["scores.npz"],
        ["a.npz", "a.depth.png", "b.depth.png"],
        ["tasks/depth/notes.txt"],
        ["photos/raw.jpg"],
        [".git/HEAD"],
    ],
)
def test_overwriting_takes_no_files_of_another_origin(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text('{"model_type": "dinov2"}', encoding="utf-8")
    with pytest.raises(SimoError, match=f"that simo_merge did not write: .*{re.escape(files[-1])}.*; move them"):
        prepare_output(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize(
    "files",
    [
        ["model.safetensors"],
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ["model.safetensors", "tasks/depth/model.safetensors", "tasks/normals/model.safetensors"],
        ["street.npz", "street.depth.png", "street.normals.png", ".DS_Store"],
        ["contact-sheet.png", "histograms.png", "findings.json"],
        ["results.json", "report.html", "photos/coffee.png", "model/README.md", "model/model.safetensors"],
    ],
)
def test_overwriting_replaces_what_commands_write(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("", encoding="utf-8")
    with written_directory(tmp_path / "out", overwrite=True) as folder:
        (folder / "new.txt").write_text("new", encoding="utf-8")
    assert listing(tmp_path / "out") == ["new.txt"]


AFFINITY = ["index.html", "pictures/cka.png", "pictures/cka.svg", "tables/cka.csv", "grouping/README.md"]


@pytest.mark.parametrize("values", [None, "[]", '{"mine": 1}', "no JSON"])
def test_overwriting_takes_an_affinity_report_but_no_pages_and_pictures_without_its_values(
    tmp_path: Path, values: str | None
) -> None:
    for name in [*AFFINITY, "grouping/encoder-1.yaml"]:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("", encoding="utf-8")
    if values is not None:
        (tmp_path / "out" / "affinity.json").write_text(values, encoding="utf-8")
    with pytest.raises(SimoError, match="that simo_merge did not write"):
        prepare_output(tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "affinity.json").write_text('{"measures": {}, "groupings": []}', encoding="utf-8")
    prepare_output(tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "pictures" / "Holiday 1.png").write_text("", encoding="utf-8")
    with pytest.raises(SimoError, match=r"that simo_merge did not write: .*Holiday 1\.png"):
        prepare_output(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("output", [".", "..", "../here"])
def test_overwriting_never_takes_the_current_folder_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "thesis.tex").write_text("mine", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SimoError, match="--overwrite would delete"):
        prepare_output(output, overwrite=True)


def test_overwriting_never_takes_the_home_folder_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "me").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    with pytest.raises(SimoError, match="--overwrite would delete"):
        prepare_output(tmp_path / "home", overwrite=True)


def raising(error: type[BaseException]) -> object:
    def fail(*_: object) -> None:
        raise error

    return fail
