"""Published numbers (published.json), to stand beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simo_merge.errors import SimoError

FILE = Path(__file__).resolve().parents[1] / "published.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedTask(_Strict):
    """A column. factor: what our metric is multiplied by to be in its unit. digits: that it is printed with."""

    name: str
    metric: str
    higher_is_better: bool
    factor: Annotated[float, Field(gt=0)] = 1.0
    digits: Annotated[int, Field(ge=0)]


class PublishedRow(_Strict):
    """A row, by our method's name. cells: one a task. delta: as printed, none for the experts. printed: a task's share
    of the expert in percent where the paper's text contradicts the cell: one of the two is a slip."""

    method: str
    paper: str
    cells: tuple[float, ...]
    delta: float | None = None
    printed: dict[str, float] = {}


class PublishedTable(_Strict):
    """A result table."""

    table: int
    caption: str
    tasks: tuple[PublishedTask, ...]
    rows: tuple[PublishedRow, ...]

    def row(self, method: str) -> PublishedRow | None:
        """The row of a method, if the paper has it."""
        return next((row for row in self.rows if row.method == method), None)


class Cost(_Strict):
    """A row of the table of costs."""

    method: str
    paper: str
    steps: int
    trainable_parameters: int
    images: int


class Costs(_Strict):
    """The table of costs; whether steps are of a task or of all is not stated."""

    table: int
    caption: str
    data: str
    rows: tuple[Cost, ...]


class Figure(_Strict):
    """Points of a figure, read off by eye."""

    figure: int
    caption: str
    data: str
    tasks: tuple[int, ...]
    normalised: tuple[float, ...]


class Published(_Strict):
    """Numbers of one paper."""

    source: str
    note: str
    tables: dict[str, PublishedTable]
    costs: Costs
    figure: Figure


def read_published(path: Path = FILE) -> Published:
    """The committed numbers.

    Raises:
        SimoError: the file is not there or not valid.
    """
    try:
        return Published.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise SimoError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def published_table(name: str | None) -> PublishedTable | None:
    """The table of a recipe.

    Raises:
        SimoError: an unknown one; the known ones are listed.
    """
    if name is None:
        return None
    tables = read_published().tables
    if name not in tables:
        raise SimoError(f"published.json has no table {name!r}; it has {', '.join(tables)}")
    return tables[name]
