"""The pictures of affinity: what they show, and that SVG and pixels show the same."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from simo_merge.affinity import AffinityMatrix, LambdaSweep
from simo_merge.affinity.grouping import group_tasks
from simo_merge.errors import SimoError
from simo_merge.report.affinity.curves import lambda_curves
from simo_merge.report.affinity.drawing import Box, Dot, Drawing, Path, Text
from simo_merge.report.affinity.groups import grouping_picture
from simo_merge.report.affinity.heat_map import heat_map
from simo_merge.report.affinity.profile import layer_profile
from simo_merge.report.affinity.shades import Shades, digits

TASKS = ("segmentation", "depth", "normals", "edges")
SVG = "{http://www.w3.org/2000/svg}"


def made_up(symmetric: bool = True, layers: int = 3) -> AffinityMatrix:
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        values = torch.rand(4, 4, generator=generator).double()
        return (values + values.T) / 2 if symmetric else values

    profile = {f"block {i + 1}": draw() for i in range(layers)}
    return AffinityMatrix("made-up", TASKS, draw(), symmetric, "weights", profile)


def texts(drawing: Drawing) -> list[str]:
    return [shape.text for shape in drawing.shapes if isinstance(shape, Text)]


def told(drawing: Drawing) -> dict[str, tuple[int, int, int]]:
    return {shape.told: shape.fill for shape in drawing.shapes if isinstance(shape, Box) and shape.told}


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_heat_map_has_a_cell_for_each_pair_and_a_joint_for_each_but_one_task(symmetric: bool) -> None:
    matrix = made_up(symmetric)
    drawing = heat_map(matrix)
    cells = told(drawing)
    assert len(cells) == 16
    for i, source in enumerate(TASKS):
        for j, target in enumerate(TASKS):
            assert f"{source} to {target}: {matrix.values[i, j].item():.4g}" in cells
    assert sum(isinstance(shape, Path) for shape in drawing.shapes) == 3
    assert ("what this task ..." in texts(drawing)) is not symmetric


def test_lighter_is_closer_and_own_entries_do_not_count() -> None:
    values = torch.tensor([[100.0, 0.3, 0.1], [0.3, 100.0, 0.2], [0.1, 0.2, 100.0]])
    cells = told(heat_map(AffinityMatrix("made-up", ("a", "b", "c"), values, True, "weights")))
    light = {key: sum(fill) for key, fill in cells.items()}
    assert light["a to b: 0.3"] > light["b to c: 0.2"] > light["a to c: 0.1"]
    values[0, 2] = values[2, 0] = -0.1
    assert "a to c: −0.1" in told(heat_map(AffinityMatrix("made-up", ("a", "b", "c"), values, True, "weights")))
    shades = Shades(0.1, 0.3)
    assert (cells["a to b: 0.3"], cells["a to c: 0.1"]) == (shades.fill(0.3), shades.fill(0.1))


def test_a_pair_without_a_value_is_grey_and_there_is_no_tree() -> None:
    values = torch.tensor([[1.0, math.nan, 0.1], [0.3, 1.0, 0.2], [0.1, 0.2, 1.0]])
    drawing = heat_map(AffinityMatrix("made-up", ("a", "b", "c"), values, False, "weights"))
    assert not [shape for shape in drawing.shapes if isinstance(shape, Path)]
    assert told(drawing)["a to b: nan"] == told(drawing)["a to a: 1"]
    assert "–" in texts(drawing)


@pytest.mark.parametrize(("symmetric", "rows"), [(True, 6), (False, 12)])
def test_a_profile_has_a_row_for_each_pair_in_the_order_of_the_whole(symmetric: bool, rows: int) -> None:
    matrix = made_up(symmetric)
    drawing = layer_profile(matrix)
    assert len(told(drawing)) == 3 * rows
    names = [text for text in texts(drawing) if " – " in text or " → " in text]
    values = [matrix.of(*re.split(" [–→] ", name)) for name in names]
    assert values == sorted(values, reverse=True)
    assert {"block 1", "block 2", "block 3"} <= set(texts(drawing))


def test_a_profile_of_very_many_layers_leaves_the_numbers_out() -> None:
    few, many = (len(texts(layer_profile(made_up(layers=layers)))) - layers for layers in (3, 40))
    assert few == many + 3 * 6
    with pytest.raises(SimoError, match="made-up has no layers"):
        layer_profile(made_up(layers=0))


def test_a_curve_goes_through_every_point_and_errors_are_turned_over() -> None:
    metrics = torch.tensor([[[0.2, 0.4], [0.4, 0.5]], [[0.2, 0.4], [0.3, 0.2]]]).double()  # [source, lambda, task]
    sweep = LambdaSweep(
        ("seg", "depth"), (0.0, 1.0), metrics, torch.tensor([0.4, 0.2]).double(), metrics[0, 0], ("miou", "abs"),
        (True, False), "rooms", "val", 5,
    )  # fmt: skip
    drawing = lambda_curves(sweep)
    dots = {shape.told: shape for shape in drawing.shapes if isinstance(shape, Dot)}
    assert len(dots) == 8
    own, other = dots["depth at 1 along depth: 1.000"], dots["depth at 1 along seg: 0.400"]
    assert own.y < other.y
    assert own.x == other.x
    assert dots["depth at 0 along seg: 0.500"].y == dots["depth at 0 along depth: 0.500"].y
    assert own.radius > other.radius
    assert {"along seg", "along depth", "miou, relative to the expert"} <= set(texts(drawing))


def test_a_point_that_was_not_measured_is_left_out() -> None:
    metrics = torch.full((2, 3, 2), 0.5).double()
    metrics[:, :, 1] = math.nan
    experts = torch.tensor([0.5, math.nan]).double()
    sweep = LambdaSweep(("a", "b"), (0.0, 0.5, 1.0), metrics, experts, metrics[0, 0], ("m", "m"), (True, True))
    assert sum(isinstance(shape, Dot) for shape in lambda_curves(sweep).shapes) == 6


def test_a_grouping_shows_each_encoder_each_gain_and_the_next_best() -> None:
    values = torch.tensor([[0.0, -0.3, -0.1], [-0.3, 0.0, -0.4], [0.2, -0.4, 0.0]])
    grouping = group_tasks(AffinityMatrix("made-up", TASKS[:3], values, False, "weights"), 2)
    shown = texts(grouping_picture(grouping))
    assert [text for text in shown if text.startswith("encoder")] == ["encoder 1", "encoder 2"]
    assert [text for text in shown if text in TASKS] == ["segmentation", "normals", "depth"]
    assert {"0.20", "−0.10", "0.00"} <= set(shown)
    assert shown[-2].startswith("together 0.10, by ")
    assert shown[-1] == "next best, by 0.70 less: segmentation + depth | normals"


def test_svg_is_well_formed_escaped_and_as_large_as_the_pixels() -> None:
    drawing = heat_map(AffinityMatrix("a<b>&c", ("x<y", "z"), torch.eye(2), True, "weights"))
    root = ElementTree.fromstring(drawing.svg())
    assert root.tag == f"{SVG}svg"
    assert "x<y" in [element.text for element in root.iter(f"{SVG}text")]
    height, width, _ = drawing.pixels(scale=1.0).shape
    assert (width, height) == (round(drawing.width), round(drawing.height))


def test_pixels_have_the_shapes_where_the_svg_has_them() -> None:
    drawing = Drawing(60, 40, "shapes")
    drawing.add(Box(10, 5, 20, 10, (255, 0, 0)), Dot(45, 20, 6, (0, 0, 255)), Path(((5, 35), (55, 35)), (0, 128, 0), 4))
    pixels = drawing.pixels(scale=1.0)
    assert pixels[10, 20].tolist() == [255, 0, 0]
    assert pixels[20, 45].tolist() == [0, 0, 255]
    assert pixels[35, 30].tolist() == [0, 128, 0]
    assert pixels[2, 2].tolist() == [255, 255, 255]
    red = np.argwhere((pixels == [255, 0, 0]).all(axis=-1))
    assert red.min(axis=0).tolist() == [5, 10]
    assert red.max(axis=0).tolist() == [14, 29]


@pytest.mark.parametrize("anchor", ["start", "middle", "end"])
def test_upright_text_reads_upwards_from_its_anchor(anchor: str) -> None:
    drawing = Drawing(40, 200, "text")
    drawing.add(Text(20, 100, "word", anchor, upright=True))  # type: ignore[arg-type]
    rows = np.argwhere((drawing.pixels(scale=1.0) < 128).any(axis=-1))[:, 0]
    assert rows.size
    ends = {"start": rows.max() <= 101, "middle": abs(rows.mean() - 100) < 4, "end": rows.min() >= 99}
    assert ends[anchor]


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (0.123, 0.5, "0.12"),
        (-0.123, 0.05, "−0.123"),
        (12.3, 50.0, "12"),
        (-0.0001, 0.5, "0.00"),
        (0.2, 0.0, "0.200"),
        (0.0, 0.0, "0"),
        (3e-9, 5e-9, "3.0e−09"),
        (math.nan, 1.0, "–"),
    ],
)
def test_numbers_have_the_digits_that_tell_them_apart(value: float, spread: float, text: str) -> None:
    assert digits(value, spread) == text


def test_text_is_readable_on_every_shade() -> None:
    shades = Shades(0.0, 1.0)
    for value in np.linspace(0, 1, 21):
        ground, ink = (
            sum(w * c for w, c in zip((0.299, 0.587, 0.114), rgb, strict=True))
            for rgb in (shades.fill(value), shades.ink(value))
        )
        assert abs(ground - ink) > 70
