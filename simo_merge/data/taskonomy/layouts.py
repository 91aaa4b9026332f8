"""The ways in which people have Taskonomy on disk."""

from __future__ import annotations

import os
from pathlib import Path

from simo_merge.data.taskonomy.domains import RGB
from simo_merge.data.taskonomy.source import TaskonomySource, file_names

_FILE = "point_P_view_V_domain_DOMAIN.png"


class Official(TaskonomySource):
    """Domain, then building: what most loaders expect (taskgrouping, MultiMAE, simo_merging)."""

    layout = "official"
    expects = f"DOMAIN/BUILDING/{_FILE}, as rgb/allensville/..."

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Pictures in a sub-folder of `rgb`."""
        return any(_has_pictures(folder) for folder in _folders(root / RGB))

    def folder(self, domain: str, building: str) -> Path:
        """`DOMAIN/BUILDING`."""
        return self.root / domain / building

    def buildings(self) -> list[str]:
        """The sub-folders of `rgb`."""
        return [folder.name for folder in _folders(self.root / RGB)]

    def offers(self, domain: str) -> bool:
        """Whether the domain's folder is there."""
        return (self.root / domain).is_dir()


class Downloader(TaskonomySource):
    """As `omnitools.download` leaves it: the component's name between domain and building."""

    layout = "downloader"
    expects = f"DOMAIN/taskonomy/BUILDING/{_FILE}, as omnitools.download writes it"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Pictures in a sub-folder of `rgb/taskonomy`."""
        return any(_has_pictures(folder) for folder in _folders(root / RGB / "taskonomy"))

    def folder(self, domain: str, building: str) -> Path:
        """`DOMAIN/taskonomy/BUILDING`."""
        return self.root / domain / "taskonomy" / building

    def buildings(self) -> list[str]:
        """The sub-folders of `rgb/taskonomy`."""
        return [folder.name for folder in _folders(self.root / RGB / "taskonomy")]

    def offers(self, domain: str) -> bool:
        """Whether the domain has a folder `taskonomy`."""
        return (self.root / domain / "taskonomy").is_dir()


class Tars(TaskonomySource):
    """Each official archive, `BUILDING_DOMAIN.tar`, unpacked into a folder of its name, as XTConsistency reads it."""

    layout = "tars"
    expects = f"BUILDING_DOMAIN/DOMAIN/{_FILE}"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Pictures in `BUILDING_rgb/rgb`."""
        return any(_has_pictures(f / RGB) for f in _folders(root) if f.name.endswith(f"_{RGB}"))

    def folder(self, domain: str, building: str) -> Path:
        """`BUILDING_DOMAIN/DOMAIN`."""
        return self.root / f"{building}_{domain}" / domain

    def buildings(self) -> list[str]:
        """Those that have a `BUILDING_rgb`."""
        return [f.name.removesuffix(f"_{RGB}") for f in _folders(self.root) if f.name.endswith(f"_{RGB}")]

    def offers(self, domain: str) -> bool:
        """Whether any building's folder of this domain is there."""
        return any(folder.name.partition("_")[2] == domain for folder in _folders(self.root))


class Buildings(TaskonomySource):
    """Building, then domain."""

    layout = "buildings"
    expects = f"BUILDING/DOMAIN/{_FILE}"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Pictures in `BUILDING/rgb`; names of buildings have no underscore."""
        return any(_has_pictures(folder / RGB) for folder in _folders(root) if "_" not in folder.name)

    def folder(self, domain: str, building: str) -> Path:
        """`BUILDING/DOMAIN`."""
        return self.root / building / domain

    def buildings(self) -> list[str]:
        """The sub-folders that have an `rgb`."""
        return [folder.name for folder in _folders(self.root) if (folder / RGB).is_dir()]

    def offers(self, domain: str) -> bool:
        """Whether any building has a folder of this domain."""
        return any((folder / domain).is_dir() for folder in _folders(self.root))


class Building(TaskonomySource):
    """One building, as the published sample model; its name is the folder's."""

    layout = "building"
    expects = f"DOMAIN/{_FILE} of one building"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Pictures directly in `rgb`."""
        return _has_pictures(root / RGB)

    def folder(self, domain: str, building: str) -> Path:
        """`DOMAIN`; of another building there is nothing."""
        return self.root / domain if building == self._building else self.root / domain / building

    def buildings(self) -> list[str]:
        """The one."""
        return [self._building]

    def offers(self, domain: str) -> bool:
        """Whether the domain's folder is there."""
        return (self.root / domain).is_dir()

    @property
    def _building(self) -> str:
        return self.root.resolve().name


TASKONOMY_LAYOUTS: tuple[type[TaskonomySource], ...] = (Official, Downloader, Tars, Buildings, Building)
"""All that are recognised."""


def _folders(parent: Path) -> list[Path]:
    """The sub-folders that are not hidden, sorted; none where `parent` is no folder."""
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [parent / name for name in sorted(names)]


def _has_pictures(folder: Path) -> bool:
    return any(name.startswith("point_") and name.endswith(f"_domain_{RGB}.png") for name in file_names(folder))
