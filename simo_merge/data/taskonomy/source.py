"""A copy of Taskonomy on disk: which views it has, and the files of each."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simo_merge.data.derived import DERIVED
from simo_merge.data.labels import RegressionLabels
from simo_merge.data.layouts import Layout
from simo_merge.data.reading import labels_from_array, read_image, read_labels, read_stored
from simo_merge.data.source import Split
from simo_merge.data.taskonomy.domains import DEPTH_ZBUFFER, DOMAINS, FILE_NAMES, MASK_VALID, RGB, Domain
from simo_merge.data.taskonomy.splits import LIMITS, SPLITS, buildings_of
from simo_merge.errors import SimoError

_LOG = logging.getLogger(__name__)


class TaskonomySource(Layout):
    """Files `point_P_view_V_domain_DOMAIN.png`; a layout says in which folder they lie.

    A key is `BUILDING/point_P_view_V`. Where a building has a folder of a domain that is read, but a view has no file
    in it (published copies differ by a few between domains), the view is left out, with a warning.

    A geometric label is valid where `mask_valid` says so. A building without that folder is judged by its
    `depth_zbuffer`, from which `mask_valid` was made (65535: no surface); without both, by the label's own sentinel.

    Args:
        root: The folder.
        wanted: The tasks that will be read; None for all. Tasks of `simo_merge.data.derived` stand for what they read.
    """

    name = "taskonomy"

    def __init__(self, root: Path, wanted: Sequence[str] | None = None) -> None:
        self.root = root
        self.tasks = {task: known.labels.task(task) for task, known in DOMAINS.items() if self.offers(known.folder)}
        needed = self.tasks if wanted is None else [DERIVED[t].source if t in DERIVED else t for t in wanted]
        self._needed = tuple(task for task in dict.fromkeys(needed) if task in self.tasks)
        self._endings: dict[tuple[str, str], str | None] = {}
        self._listings: dict[tuple[str, str], tuple[str, ...]] = {}

    @abstractmethod
    def folder(self, domain: str, building: str) -> Path:
        """Where the files of one domain of one building lie."""

    @abstractmethod
    def buildings(self) -> list[str]:
        """The buildings that are on disk, sorted."""

    @abstractmethod
    def offers(self, domain: str) -> bool:
        """Whether any building has this domain."""

    def __getstate__(self) -> dict[str, Any]:
        """Without the listings, which only `split` and `missing` need: workers read views that are known."""
        return {**self.__dict__, "_listings": {}}

    def split(self, name: str | None) -> Split:
        """The views of a split's buildings, in the order of its list; views sorted by file name, as text."""
        listed = buildings_of(name) if name is not None else self.buildings()
        limit = LIMITS.get(name) if name is not None else None
        views = {building: self.views(RGB, building)[:limit] for building in listed}
        here = [building for building in listed if views[building]]
        if not here:
            some = ", ".join(listed[:3]) or "none"
            raise SimoError(
                f"{self.root} ({self.layout}) has pictures of none of the {len(listed)} buildings of taskonomy "
                f"({name or 'all'}); they are {some}{' ...' if len(listed) > 3 else ''}. Expected {self.expects}"
            )
        if len(here) < len(listed):
            gone = [building for building in listed if building not in here]
            _LOG.warning(
                "taskonomy (%s): %d of the %d buildings of this split are here, without %s%s; scores on a part are "
                "not comparable",
                name or "all",
                len(here),
                len(listed),
                ", ".join(gone[:5]),
                " ..." if len(gone) > 5 else "",
            )
        self._tell_validity(here)
        return Split(name or "all", tuple(self._whole(name or "all", {building: views[building] for building in here})))

    def image(self, key: str) -> Tensor:
        """The picture of a view."""
        return read_image(self.path(RGB, key))

    def label(self, task: str, key: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The label of a view, valid where its own file and the building's geometry say so."""
        domain = DOMAINS[task]
        validity = self.validity(domain, key.partition("/")[0])
        mask = self.path(MASK_VALID, key) if validity == MASK_VALID else None
        path = self.path(domain.folder, key)
        target, valid = labels_from_array(path, domain.labels, self.stored(task, key), size, mask)
        if validity == DEPTH_ZBUFFER:
            valid = valid & read_labels(self.path(DEPTH_ZBUFFER, key), DOMAINS["depth"].labels, size)[1]
            target = torch.where(valid, target, 0)
        return target, valid

    def stored(self, task: str, key: str) -> npt.NDArray[np.generic]:
        """The numbers of a label as they lie on disk, `(H, W)` or `(H, W, C)`, of its channels those that count."""
        domain = DOMAINS[task]
        numbers = read_stored(self.path(domain.folder, key), domain.labels)
        count = domain.labels.channels if isinstance(domain.labels, RegressionLabels) else 0
        if domain.spare_channels and numbers.ndim == 3 and numbers.shape[2] == count + domain.spare_channels:
            return numbers[..., :count]
        return numbers

    def splits(self) -> tuple[str, ...]:
        """The splits that have a building on disk."""
        here = set(self.buildings())
        return tuple(name for name in SPLITS if here.intersection(buildings_of(name)))

    def missing(self, task: str, keys: Sequence[str]) -> list[str]:
        """The label files, and those that tell where a label is valid, that listings of the folders do not have."""
        reads = {building: self._reads(task, building) for building in _buildings(keys)}
        there = {(domain, b): set(self.views(domain, b)) for b, domains in reads.items() for domain in domains}
        return [
            str(self.path(domain, key))
            for key in keys
            for building, _, view in [key.partition("/")]
            for domain in reads[building]
            if view not in there[domain, building]
        ]

    def validity(self, domain: Domain, building: str) -> str | None:
        """The other domain that tells where this one has values in a building; None: the file itself does."""
        if not domain.geometric:
            return None
        if self._ending(MASK_VALID, building) is not None:
            return MASK_VALID
        has_depth = domain.folder != DEPTH_ZBUFFER and self._ending(DEPTH_ZBUFFER, building) is not None
        return DEPTH_ZBUFFER if has_depth else None

    def path(self, domain: str, key: str) -> Path:
        """The file of a view in a domain, whether it exists or not."""
        building, _, view = key.partition("/")
        ending = self._ending(domain, building) or FILE_NAMES.get(domain, (domain,))[0]
        return self.folder(domain, building) / f"{view}_domain_{ending}.png"

    def views(self, domain: str, building: str) -> tuple[str, ...]:
        """The views that a building has in a domain, `point_P_view_V`, sorted by file name as text.

        So `point_10_` comes before `point_1_`, and `view_10_` before `view_1_`, as wherever whole names are sorted.
        """
        place = (domain, building)
        if place not in self._listings:
            ending = self._ending(domain, building)
            tail = f"_domain_{ending}.png"
            names = [] if ending is None else [n for n in file_names(self.folder(domain, building)) if n.endswith(tail)]
            self._listings[place] = tuple(n[: -len(tail)] for n in sorted(names) if n.startswith("point_"))
        return self._listings[place]

    def _ending(self, domain: str, building: str) -> str | None:
        """What the names of these files call the domain; None where there are no such files."""
        place = (domain, building)
        if place not in self._endings:
            known = FILE_NAMES.get(domain, (domain,))
            names = file_names(self.folder(domain, building))
            found = (ending for n in names for ending in known if n.endswith(f"_domain_{ending}.png"))
            self._endings[place] = next(found, None)
        return self._endings[place]

    def _reads(self, task: str, building: str) -> list[str]:
        domain = DOMAINS[task]
        return [place for place in (domain.folder, self.validity(domain, building)) if place is not None]

    def _whole(self, split: str, views: dict[str, tuple[str, ...]]) -> Iterator[str]:
        """The keys of views that have every file that will be read; what is left out is told, with both numbers."""
        lacking: dict[str, list[str]] = {}
        for building, names in views.items():
            domains = dict.fromkeys(domain for task in self._needed for domain in self._reads(task, building))
            # A domain that the building lacks as a whole is no view's fault: `missing` tells it.
            listings = {domain: set(self.views(domain, building)) for domain in domains}
            for view in names:
                absent = next((domain for domain, there in listings.items() if there and view not in there), None)
                if absent is None:
                    yield f"{building}/{view}"
                else:
                    lacking.setdefault(absent, []).append(f"{building}/{view}")
        total = sum(len(names) for names in views.values())
        for domain, keys in lacking.items():
            _LOG.warning(
                "taskonomy (%s): %d of %d views have no file in %s and are left out; the first is %s",
                split,
                len(keys),
                total,
                domain,
                keys[0],
            )

    def _tell_validity(self, buildings: Sequence[str]) -> None:
        tasks = [task for task in self._needed if DOMAINS[task].geometric]
        if not tasks:
            return
        used = [self.validity(DOMAINS["normals"], building) for building in buildings]
        told = ", ".join(f"{used.count(which)} by {which or 'the label alone'}" for which in dict.fromkeys(used))
        _LOG.info("taskonomy: where %s are valid is told, of %d buildings: %s", ", ".join(tasks), len(used), told)
        bare = [task for task in tasks if _has_no_sentinel(DOMAINS[task])]
        if None in used and bare:
            _LOG.warning(
                "taskonomy: %d of %d buildings have neither %s nor %s, so every pixel of %s counts as valid there",
                used.count(None),
                len(used),
                MASK_VALID,
                DEPTH_ZBUFFER,
                ", ".join(bare),
            )


def file_names(folder: Path) -> Iterator[str]:
    """The names in a folder, in no order; none where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.name
    except (FileNotFoundError, NotADirectoryError):
        return


def _buildings(keys: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(key.partition("/")[0] for key in keys))


def _has_no_sentinel(domain: Domain) -> bool:
    return isinstance(domain.labels, RegressionLabels) and not domain.labels.invalid
