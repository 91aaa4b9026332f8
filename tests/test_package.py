"""The package as a whole: what importing it costs, what it says of itself, what it must not hide."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
OPTIONAL = {
    "accelerate",
    "albumentations",
    "cv2",
    "jinja2",
    "matplotlib",
    "onnx",
    "skimage",
    "sklearn",
    "torchjd",
    "trimesh",
    "typer",
}


def python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter, from the repository's root, and return what it printed."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_leaves_optional_libraries_alone() -> None:
    loaded = set(json.loads(python("import json, sys, simo_merge; print(json.dumps(list(sys.modules)))")))
    assert not loaded & OPTIONAL


def test_version_is_the_installed_one() -> None:
    import simo_merge

    assert simo_merge.__version__ == metadata.version("simo_merge")
    assert f"\nversion: {simo_merge.__version__}\n" in (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")


def test_every_public_name_exists() -> None:
    import simo_merge

    missing = [name for name in simo_merge.__all__ if not hasattr(simo_merge, name)]
    assert not missing


def test_what_users_write_types_and_scripts_with_is_public() -> None:
    import simo_merge
    from simo_merge.merging import files

    assert {"Criterion", "MethodSelection", "Parameter", "MergeData"} <= set(simo_merge.__all__)
    assert {"merge_checkpoints", "open_state"} <= set(files.__all__)


def test_package_is_marked_as_typed() -> None:
    assert resources.files("simo_merge").joinpath("py.typed").is_file()


def test_datasets_folder_does_not_hide_the_package_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("whose = 'the ecosystem'\n")
    code = "import sys; sys.path.append(sys.argv[1]); import datasets; print(datasets.whose)"
    assert python(code, str(tmp_path)).strip() == "the ecosystem"


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line and line[0] != "#"}

    names = {canonicalize_name(Requirement(line).name) for line in wanted}
    assert names - {"simo-merge"} <= pins
