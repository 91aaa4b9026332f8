"""Furniture models: the catalogue of ``sweethome3d-furniture``."""

from __future__ import annotations

import csv
import io
import posixpath
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from renderer.geometry import CLASS_ID, Array, Material, Mesh, join

DEBIAN_FOLDER = Path("/usr/share/sweethome3d/furniture")
MOST_TRIANGLES = 60_000
TEXTURE_PIXELS = 256


class RenderError(ValueError):
    """A mistake of the user's, told in one line."""


@dataclass(frozen=True)
class Entry:
    """One row of ``MODELS.csv``."""

    key: str
    model_file: str
    role: str
    class_name: str


@dataclass(frozen=True, eq=False)
class Model:
    """A furniture model in its own frame (see the package's conventions), in metres."""

    key: str
    role: str
    class_name: str
    mesh: Mesh
    elevation: float = 0.0

    @property
    def size(self) -> Array:
        """Width, depth and height."""
        low, high = self.mesh.bounds
        return high - low


class Catalogue(Protocol):
    """Where furniture comes from."""

    def draw(self, role: str, rng: np.random.Generator) -> Model | None:
        """A model of ``role`` drawn at random; None when the catalogue has none."""


def read_table(path: Path) -> list[Entry]:
    """The rows of a models table (columns key, model_file, role, class), in the order of the file.

    Raises:
        RenderError: the file is missing, a column is, or a class is unknown.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        entries = [Entry(row["key"], row["model_file"], row["role"], row["class"]) for row in rows]
    except OSError as error:
        raise RenderError(f"cannot read the models table {path}: {error.strerror}") from error
    except KeyError as error:
        raise RenderError(
            f"the models table {path} has no column {error}; expected key, model_file, role, class"
        ) from error
    for entry in entries:
        if entry.class_name not in CLASS_ID:
            raise RenderError(f"{path}: model {entry.key} has class {entry.class_name!r}; known: {', '.join(CLASS_ID)}")
    return entries


def read_properties(text: str) -> dict[str, dict[str, str]]:
    """A ``PluginFurnitureCatalog.properties``: lines ``field#number=value`` -> {number: {field: value}}."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        field, hash_sign, number = name.strip().partition("#")
        if equals and hash_sign and field:
            found[number][field] = value.strip()
    return dict(found)


class Sh3fCatalogue:
    """Models of ``.sh3f`` files (zip archives of OBJ models); each is read when first drawn, then kept."""

    def __init__(self, folder: Path, entries: Sequence[Entry]) -> None:
        self._folder = folder
        self._by_role: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            self._by_role[entry.role].append(entry)
        self._archives: dict[str, zipfile.ZipFile] = {}
        self._properties: dict[str, dict[str, dict[str, str]]] = {}
        self._models: dict[str, Model] = {}
        for entry in entries:
            self._fields(entry)

    def draw(self, role: str, rng: np.random.Generator) -> Model | None:
        """A model of ``role`` drawn at random; None when the table has none."""
        choices = self._by_role.get(role)
        return self.load(choices[rng.integers(len(choices))]) if choices else None

    def load(self, entry: Entry) -> Model:
        """The model of one row, at its catalogue size."""
        if entry.key not in self._models:
            fields = self._fields(entry)
            mesh = self._read_mesh(entry, fields)
            elevation = float(fields.get("elevation", 0)) / 100
            self._models[entry.key] = Model(entry.key, entry.role, entry.class_name, mesh, elevation)
        return self._models[entry.key]

    def _fields(self, entry: Entry) -> dict[str, str]:
        pack, _, number = entry.key.rpartition("-")
        if pack not in self._archives:
            path = self._folder / f"{pack}.sh3f"
            if not path.is_file():
                raise RenderError(
                    f"no {path.name} in {self._folder}: install Debian's package sweethome3d-furniture "
                    "(apt-get install sweethome3d-furniture) or name the folder of its .sh3f files: --models"
                )
            try:
                self._archives[pack] = zipfile.ZipFile(path)
            except zipfile.BadZipFile as error:
                raise RenderError(f"{path} is no zip archive ({error}): install the package again") from error
            text = self._archives[pack].read("PluginFurnitureCatalog.properties").decode("utf-8", errors="replace")
            self._properties[pack] = read_properties(text)
        fields = self._properties[pack].get(number, {})
        if fields.get("model") != entry.model_file:
            raise RenderError(
                f"{pack}.sh3f holds {fields.get('model')!r} under number {number}, the models table "
                f"{entry.model_file!r}: the table is for version 1.8 of sweethome3d-furniture"
            )
        return fields

    def _read_mesh(self, entry: Entry, fields: dict[str, str]) -> Mesh:
        import trimesh
        from trimesh.resolvers import ZipResolver

        archive = self._archives[entry.key.rpartition("-")[0]]
        path = entry.model_file.lstrip("/")
        inside = posixpath.dirname(path)
        files = {
            name: io.BytesIO(archive.read(name)) for name in archive.namelist() if posixpath.dirname(name) == inside
        }
        loaded = trimesh.load(
            files[path], file_type="obj", resolver=ZipResolver(files, namespace=inside), process=False
        )
        geometries = list(loaded.geometry.values()) if hasattr(loaded, "geometry") else [loaded]
        mesh = join([_from_trimesh(geometry) for geometry in geometries])
        size = np.array([float(fields[name]) / 100 for name in ("width", "depth", "height")])
        mesh = _to_catalogue_size(mesh, fields.get("modelRotation"), size)
        for cell in (0.006, 0.008, 0.010):
            if len(mesh.triangles) > MOST_TRIANGLES:
                mesh = cluster(mesh, cell)
        return mesh


def _from_trimesh(geometry: Any) -> Mesh:
    """A mesh of one material; a texture replaces the diffuse colour, and transparent is opaque."""
    material = getattr(geometry.visual, "material", None)
    image = getattr(material, "image", None)
    if image is not None:
        image = image.convert("RGB")
        image.thumbnail((TEXTURE_PIXELS, TEXTURE_PIXELS))
        surface = Material.image(np.asarray(image, dtype=np.float64) / 255)
    else:
        colour = getattr(material, "diffuse", None)
        surface = Material.plain(np.full(3, 0.6) if colour is None else np.asarray(colour[:3]) / 255)
    uv = getattr(geometry.visual, "uv", None)
    corners = np.zeros((len(geometry.faces), 3, 2)) if uv is None else np.asarray(uv, dtype=np.float64)[geometry.faces]
    corners = np.nan_to_num(corners)
    vertices = np.asarray(geometry.vertices, dtype=np.float64)
    return Mesh(vertices[geometry.faces], corners, np.zeros(len(corners), dtype=np.int64), (surface,))


def _to_catalogue_size(mesh: Mesh, rotation: str | None, size: Array) -> Mesh:
    """OBJ axes (y up, front to +z) -> ours (z up, front to -y), scaled to ``size``, standing on z = 0."""
    points = mesh.triangles
    if rotation:
        points = points @ np.array(rotation.split(), dtype=np.float64).reshape(3, 3).T
    points = np.stack([points[..., 0], -points[..., 2], points[..., 1]], axis=-1)
    low, high = points.reshape(-1, 3).min(axis=0), points.reshape(-1, 3).max(axis=0)
    base = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    return replace(mesh, triangles=(points - base) * (size / np.maximum(high - low, 1e-9)))


def cluster(mesh: Mesh, cell: float) -> Mesh:
    """Vertex clustering: corners in a cube of side ``cell`` (metres) meet at their mean, flat faces go."""
    points = mesh.triangles.reshape(-1, 3)
    _, member = np.unique(np.floor(points / cell).astype(np.int64), axis=0, return_inverse=True)
    member = member.reshape(-1)
    weight = np.bincount(member)
    mean = np.stack([np.bincount(member, points[:, axis]) / weight for axis in range(3)], axis=1)
    corner = member.reshape(-1, 3)
    keep = (corner[:, 0] != corner[:, 1]) & (corner[:, 1] != corner[:, 2]) & (corner[:, 2] != corner[:, 0])
    return Mesh(mean[corner[keep]], mesh.uv[keep], mesh.material[keep], mesh.materials)
