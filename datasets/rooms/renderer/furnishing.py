"""What stands in each kind of room, and where."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from renderer.catalogue import Catalogue, Model
from renderer.decor import book_pile, book_row, television
from renderer.geometry import Array, SceneBuilder
from renderer.layout import FloorPlan, Spot, Wall, around, in_front, spot
from renderer.recipes import ON_TOP, RECIPES
from renderer.surfaces import Probe, find_top, shelf_slots


@dataclass(frozen=True, eq=False)
class Item:
    """A placed model: its number in the scene, where it stands, and the z of its lower side."""

    number: int
    model: Model
    place: Spot
    z: float

    @property
    def centre(self) -> Array:
        """Centre of its bounding box in room coordinates."""
        return np.array([self.place.x, self.place.y, self.z + self.model.size[2] / 2])


@dataclass
class Furnisher:
    """Draws models and places them; ``items`` holds what found a place."""

    scene: SceneBuilder
    plan: FloorPlan
    catalogue: Catalogue
    rng: np.random.Generator
    items: list[Item] = field(default_factory=list)

    def furnish(self, kind: str) -> None:
        """Work through the recipe of ``kind``, then put small things on the furniture."""
        groups = {
            "bed": self._bed,
            "sofa": self._sofa,
            "table": self._table,
            "desk": self._desk,
            "tv": self._tv,
        }
        for role, how, most, chance in RECIPES[kind]:
            if how == "kitchen":
                self._kitchen(most)
                continue
            for _ in range(most):
                if self.rng.random() < chance:
                    groups[how](role) if how in groups else self._single(role, how)
        for item in list(self.items):
            self._load(item)

    def put(self, model: Model, place: Spot, z: float = 0.0, wall: Wall | None = None) -> Item:
        """Place a model with a tint of its own; its footprint and its part of the wall are taken from now."""
        number = len(self.items) + 1
        mesh = model.mesh.tinted(self._tint()).placed(place.x, place.y, z + 0.001, place.yaw)
        self.scene.add(mesh, model.class_name, number)
        item = Item(number, model, place, z + 0.001)
        self.items.append(item)
        if z == 0.0:
            self.plan.occupy(place)
        if wall is not None:
            s = float((np.array([place.x, place.y, 0.0]) - wall.origin) @ wall.along)
            half = float(model.size[0]) / 2
            wall.taken.append((s - half, s + half, z, z + float(model.size[2]) + 0.05))
        return item

    def _tint(self) -> Array:
        rng = self.rng
        if rng.random() < 0.25:
            return np.clip(rng.uniform(0.35, 1.25, 3), 0, None)
        return np.clip(1 + rng.normal(0, 0.1) + rng.normal(0, 0.06, 3), 0.4, 1.5)

    def _single(self, role: str, how: str) -> Item | None:
        model = self.catalogue.draw(role, self.rng)
        if model is None or model.size[2] > self.plan.size[2] - 0.05:
            return None
        if how == "wall":
            found = self.plan.find_at_wall(model.size, self.rng)
            return self.put(model, found[0], wall=found[1]) if found else None
        if how == "centre":
            place = self.plan.find_central(model.size, self.rng)
        else:
            place = self.plan.find_standing(model.size, self.rng, turns=4 if model.size[0] > 1.0 else 0)
        return self.put(model, place) if place else None

    def _put_if_free(self, role: str, where: list[Spot], model: Model) -> Item | None:
        for place in where:
            if self.plan.free(place):
                return self.put(model, place)
        return None

    def _bed(self, role: str) -> None:
        bed = self._single(role, "wall")
        stand = self.catalogue.draw("nightstand", self.rng)
        if bed is None or stand is None or bed.model.size[1] < bed.model.size[0] * 0.8:
            return
        right = np.array([np.cos(bed.place.yaw), np.sin(bed.place.yaw)])
        back = np.array([-right[1], right[0]])
        for side in (-1, 1):
            if self.rng.random() < 0.65:
                shift = side * (bed.model.size[0] + stand.size[0] + 0.1) / 2 * right
                x, y = (bed.place.x, bed.place.y) + shift + back * (bed.model.size[1] - stand.size[1]) / 2
                self._put_if_free("nightstand", [spot(x, y, bed.place.yaw, stand.size)], stand)

    def _sofa(self, role: str) -> None:
        sofa = self._single(role, "wall" if self.rng.random() < 0.75 else "free")
        table = self.catalogue.draw("coffee", self.rng)
        if sofa is not None and table is not None and self.rng.random() < 0.85:
            gaps = self.rng.uniform(0.25, 0.6, 3)
            self._put_if_free("coffee", [in_front(sofa.place, sofa.model.size, table.size, g) for g in gaps], table)

    def _table(self, role: str) -> None:
        table = self._single(role, "centre")
        chair = self.catalogue.draw("stool" if self.rng.random() < 0.12 else "chair", self.rng)
        if table is None or chair is None:
            return
        for side in range(4):
            length = table.model.size[side % 2]
            seats = int(np.clip(length // (chair.size[0] + 0.1), 0, 3)) if length > 0.55 else 0
            for k in range(seats):
                if self.rng.random() < 0.65:
                    gap, twist = self.rng.uniform(0.04, 0.3), self.rng.normal(0, 0.2)
                    part = (k + 0.5) / seats - 0.5
                    place = around(table.place, table.model.size, chair.size, side, part, gap, twist)
                    self._put_if_free("chair", [place], chair)

    def _desk(self, role: str) -> None:
        desk = self._single(role, "wall" if self.rng.random() < 0.8 else "free")
        chair = self.catalogue.draw("chair", self.rng)
        if desk is not None and chair is not None:
            places = [in_front(desk.place, desk.model.size, chair.size, g, shift=self.rng.normal(0, 0.12))
                      for g in self.rng.uniform(0.04, 0.4, 3)]  # fmt: skip
            self._put_if_free("chair", places, chair)

    def _tv(self, role: str) -> None:
        stand = self._single(role if self.rng.random() < 0.6 else "dresser", "wall")
        if stand is None:
            return
        width = min(self.rng.uniform(0.6, 1.2), max(0.45, float(stand.model.size[0])))
        height = Probe(stand.model.mesh).top(np.zeros(2), np.array([width / 6, 0.08]))
        if height is not None and height < 1.25:
            mesh = television(width, self.rng).placed(stand.place.x, stand.place.y, stand.z + height, stand.place.yaw)
            self.scene.add(mesh, "tv")

    def _kitchen(self, most: int) -> None:
        """A row of lower units along one wall, with upper units over some of them."""
        wall = self.plan.walls[self.rng.integers(4)]
        s, count = self.rng.uniform(0.03, 0.6), 0
        for _ in range(most * 3):
            model = self.catalogue.draw("kitlow", self.rng)
            if model is None or count == most:
                break
            half = float(model.size[0]) / 2
            place = self.plan.at_wall(model.size, wall, s + half)
            if wall.free(s, s + 2 * half, 0, float(model.size[2])) and self.plan.free(place):
                self.put(model, place, wall=wall)
                self._upper(wall, s + half)
                count += 1
                s += 2 * half + 0.035
            else:
                s += 0.25

    def _upper(self, wall: Wall, s: float) -> None:
        upper = self.catalogue.draw("kitup", self.rng)
        if upper is None or self.rng.random() < 0.35:
            return
        half, z = float(upper.size[0]) / 2, 1.42
        top = z + float(upper.size[2])
        if top < self.plan.size[2] - 0.05 and wall.free(s - half, s + half, z, top):
            self.put(upper, self.plan.at_wall(upper.size, wall, s), z=z, wall=wall)

    def _load(self, item: Item) -> None:
        """Small things and books on the top of a piece, books on the boards of a shelf."""
        most = ON_TOP.get(item.model.role, 0)
        if not most or item.z > 0.5 or item.model.size[2] > 2.1:
            return
        probe = Probe(item.model.mesh)
        if item.model.role == "shelf":
            self._fill_shelf(item, probe)
        taken: list[tuple[float, float, float]] = []
        for _ in range(int(self.rng.integers(0, most + 1))):
            books = self.rng.random() < 0.4
            model = None if books else self.catalogue.draw("small", self.rng)
            mesh = model.mesh.tinted(self._tint()) if model else book_pile(self.rng)
            mesh = mesh.placed(0.0, 0.0, 0.0, self.rng.uniform(-0.7, 0.7))
            low, high = mesh.bounds
            found = find_top(item.model, probe, high - low, self.rng)
            radius = float(np.hypot(*(high - low)[:2])) / 2
            if found is None or any(np.hypot(found[0] - x, found[1] - y) < radius + r for x, y, r in taken):
                continue
            if item.z + found[2] + high[2] > self.plan.size[2] - 0.02:
                continue
            taken.append((found[0], found[1], radius))
            mesh = mesh.placed(found[0], found[1], found[2] + 0.0005, 0.0)
            mesh = mesh.placed(item.place.x, item.place.y, item.z, item.place.yaw)
            self.scene.add(mesh, model.class_name if model else "books")

    def _fill_shelf(self, item: Item, probe: Probe) -> None:
        for slot in shelf_slots(probe):
            if self.rng.random() < 0.12:
                continue
            length = (slot.x1 - slot.x0) * self.rng.uniform(0.5, 1.0)
            row = book_row(length, min(slot.depth, 0.22), slot.clearance, self.rng)
            start = slot.x0 if self.rng.random() < 0.7 else slot.x1 - length
            row = row.placed(start, slot.y, slot.z + 0.0005, 0.0)
            self.scene.add(row.placed(item.place.x, item.place.y, item.z, item.place.yaw), "books")
