"""Which of its known layouts a data set on disk has."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from simo_merge.data.source import Source
from simo_merge.errors import SimoError

_LOG = logging.getLogger(__name__)


class Layout(Source):
    """A source that is one of several ways in which people have a data set.

    Attributes:
        layout: Its name, as in `?layout=mtan`.
        expects: What lies on disk in this layout, in a line, for error messages.
    """

    expects: ClassVar[str]

    @classmethod
    @abstractmethod
    def recognises(cls, root: Path) -> bool:
        """Whether a folder (or file) lies in this layout; it looks at names only and reads no picture."""


_Found = TypeVar("_Found", bound=Layout)


def detect(data: str, root: Path, layouts: Sequence[type[_Found]], wanted: str | None = None) -> type[_Found]:
    """The layout of `root`, which is told in the log.

    Args:
        data: Name of the data set, for messages.
        root: What the user named.
        layouts: All that are known.
        wanted: Name of the one to take without a look.

    Raises:
        SimoError: nothing there, an unknown `wanted`, no layout that fits (with what each expects), or several.
    """
    if not root.exists():
        raise SimoError(f"{root} does not exist; expected the {data} data set there")
    by_name = {layout.layout: layout for layout in layouts}
    if wanted is not None:
        if wanted not in by_name:
            raise SimoError(f"unknown layout {wanted!r} of {data}; known: {', '.join(by_name)}")
        return by_name[wanted]
    fitting = [layout for layout in layouts if layout.recognises(root)]
    if not fitting:
        known = "; ".join(f"{layout.layout}: {layout.expects}" for layout in layouts)
        raise SimoError(f"{root} has none of the known layouts of {data}. {known}")
    if len(fitting) > 1:
        names = [layout.layout for layout in fitting]
        raise SimoError(
            f"{root} could be {data} in the layouts {' and '.join(names)}; say which: {data}:{root}?layout={names[0]}"
        )
    _LOG.info("%s: layout %s in %s", data, fitting[0].layout, root)
    return fitting[0]
