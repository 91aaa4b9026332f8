"""A measure layer by layer: where two tasks agree, and where they part."""

from __future__ import annotations

from itertools import combinations, permutations

from simo_merge.affinity import AffinityMatrix
from simo_merge.errors import SimoError
from simo_merge.report.affinity.drawing import FAINT, SIZE, Box, Drawing, Text, text_width
from simo_merge.report.affinity.shades import Shades

ROW, GAP, EDGE, HEAD = 22.0, 1.5, 14.0, 34.0
WIDE, NARROW, MANY = 46.0, 18.0, 16  # of a column; beyond so many layers cells hold no numbers


def layer_profile(matrix: AffinityMatrix) -> Drawing:
    """A row for each pair (each direction of it, unless they are the same), a column for each layer.

    Rows are in the order of the whole measure, highest first.

    Raises:
        SimoError: a measure without layers.
    """
    if not matrix.profile:
        raise SimoError(f"{matrix.name} has no layers; a profile needs a measure that is taken at each of them")
    count = len(matrix.tasks)
    pairs = list(combinations(range(count), 2) if matrix.symmetric else permutations(range(count), 2))
    pairs.sort(key=lambda pair: -matrix.values[pair].nan_to_num(float("-inf")).item())
    between = " – " if matrix.symmetric else " → "
    names = [between.join((matrix.tasks[s], matrix.tasks[t])) for s, t in pairs]
    shades = Shades.of([values[pair].item() for values in matrix.profile.values() for pair in pairs])
    numbers = len(matrix.profile) <= MANY
    cell = WIDE if numbers else NARROW
    left = EDGE + text_width(names) + 10.0
    right = text_width([shades.text(shades.low), shades.text(shades.high)]) + 44.0
    inside, height = len(matrix.profile) * cell, len(pairs) * ROW
    bottom = text_width(list(matrix.profile)) + 18.0
    title = f"{matrix.name}, layer by layer"
    width = max(left + inside + right, text_width([title], SIZE + 2) * 1.1 + 2 * EDGE)
    drawing = Drawing(width, HEAD + height + bottom, title)
    drawing.add(Text(EDGE, 16.0, title, size=SIZE + 2, bold=True))
    for j, (layer, values) in enumerate(matrix.profile.items()):
        x = left + j * cell
        for i, pair in enumerate(pairs):
            value = values[pair].item()
            y = HEAD + i * ROW
            told = f"{names[i]}, {layer}: {value:.4g}"
            drawing.add(Box(x, y, cell - GAP, ROW - GAP, shades.fill(value), told=told))
            if numbers:
                place = x + (cell - GAP) / 2, y + (ROW - GAP) / 2
                drawing.add(Text(*place, shades.text(value), "middle", shades.ink(value), SIZE - 2))
        drawing.add(Text(x + (cell - GAP) / 2, HEAD + height + 6.0, layer, "end", FAINT, SIZE - 1, upright=True))
    for i, name in enumerate(names):
        drawing.add(Text(left - 8.0, HEAD + (i + 0.5) * ROW - GAP / 2, name, "end"))
    shades.bar(drawing, left + inside + 14.0, HEAD, max(height - GAP, 40.0))
    return drawing
