"""`dataset.yaml`: what lies in a data set's folder, and how its label files are to be read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simo_merge.data.labels import LABEL_KINDS, Labels
from simo_merge.errors import SimoError

FILE_NAME = "dataset.yaml"


class Images(BaseModel):
    """Where the pictures are: `folder`, and `suffix` (None: whichever common one is there)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = "images"
    suffix: str | None = Field(None, pattern=r"^\.[A-Za-z0-9]+$")


class Description(BaseModel):
    """A data set, as its `dataset.yaml` describes it.

    Args:
        name: Name of the data set; results carry it.
        licence, note, camera: For people: who may use it, its size and origin, its camera convention.
        images: Where the pictures are.
        splits: Folder of `<split>.txt` files, one key a line.
        tasks: Task name -> how its labels are stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    licence: str = ""
    note: str = ""
    camera: str = ""
    images: Images = Field(default_factory=lambda: Images.model_validate({}))
    splits: str = "gt_sets"
    tasks: dict[str, Labels]


_Model = TypeVar("_Model", bound=BaseModel)


def read_description(root: str | Path) -> Description:
    """Read and check `root/dataset.yaml`.

    Raises:
        SimoError: no such file, no YAML, an unknown key (the known ones are listed), or a value out of range.
    """
    path = Path(root) / FILE_NAME
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SimoError(
            f"{path} does not exist; a folder data set needs it to say what its label files hold. "
            "docs/own-data.md shows one. For images without labels, use images:DIR."
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SimoError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    where = str(path)
    tasks = values.get("tasks") if isinstance(values, dict) else None
    if not isinstance(tasks, dict) or not tasks:
        raise SimoError(f"{where}: expected `tasks:` with at least one task under it")
    labels = {str(name): _labels(f"{where}: tasks.{name}", entry) for name, entry in tasks.items()}
    images = _checked(Images, f"{where}: images", values.get("images") or {})
    return _checked(Description, where, {**values, "tasks": labels, "images": images})


def _labels(where: str, entry: object) -> Labels:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or kind not in LABEL_KINDS:
        raise SimoError(f"{where}: kind is {kind!r}, expected one of {', '.join(LABEL_KINDS)}")
    return _checked(LABEL_KINDS[kind], where, entry)


def _checked(model: type[_Model], where: str, values: object) -> _Model:
    if isinstance(values, model):
        return values
    if not isinstance(values, Mapping):
        raise SimoError(f"{where}: got {values!r}, expected these keys: {', '.join(model.model_fields)}")
    fields: dict[str, Any] = {str(key): value for key, value in values.items()}
    unknown = sorted(set(fields) - set(model.model_fields))
    if unknown:
        known = ", ".join(model.model_fields)
        raise SimoError(f"{where}: unknown key {', '.join(unknown)}; the known ones are {known}")
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *(str(part) for part in first["loc"])])
        raise SimoError(f"{place}: {first['msg']}, got {first['input']!r}") from None
