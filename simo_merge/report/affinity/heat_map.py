"""A measure as a heat map: tasks in the order of a tree that stands above it."""

from __future__ import annotations

from simo_merge.affinity import AffinityMatrix
from simo_merge.affinity.linkage import Branch, average_linkage
from simo_merge.report.affinity.drawing import FAINT, GRID, INK, SIZE, Box, Drawing, Path, Text, text_width
from simo_merge.report.affinity.shades import Shades, digits
from simo_merge.report.numbers import minus

CELL, GAP, EDGE = 54.0, 2.0, 14.0
TREE, HEAD = 96.0, 30.0


def heat_map(matrix: AffinityMatrix) -> Drawing:
    """Affinities of all pairs, light where tasks go together; own entries are left out of the colours.

    Rows are sources and columns targets: [s, t] is what s is to t. Tasks are in the order of their average linkage, as
    they were given where a pair lacks its value.
    """
    tree = average_linkage(matrix) if _complete(matrix) else None
    order = tree.leaves if tree else tuple(range(len(matrix.tasks)))
    names, count = [matrix.tasks[i] for i in order], len(order)
    values = matrix.values[list(order)][:, list(order)].tolist()
    shades = Shades.of([values[i][j] for i in range(count) for j in range(count) if i != j])
    left = EDGE + text_width(names) + (34.0 if not matrix.symmetric else 10.0)
    top = HEAD + (TREE if tree else 6.0)
    side = count * CELL
    right = text_width([shades.text(shades.low), shades.text(shades.high)]) + 44.0
    bottom = text_width(names) + (34.0 if not matrix.symmetric else 16.0)
    width = max(left + side + right, EDGE + text_width([matrix.name], SIZE + 2) * 1.1 + EDGE)
    drawing = Drawing(width, top + side + bottom, f"{matrix.name}: affinity of {', '.join(names)}")
    drawing.add(Text(EDGE, 16.0, matrix.name, size=SIZE + 2, bold=True))
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            told = f"{names[i]} to {names[j]}: {minus(f'{value:.4g}')}"
            x, y = left + j * CELL, top + i * CELL
            fill, ink = (GRID, FAINT) if i == j else (shades.fill(value), shades.ink(value))
            drawing.add(Box(x, y, CELL - GAP, CELL - GAP, fill, told=told))
            drawing.add(Text(x + (CELL - GAP) / 2, y + (CELL - GAP) / 2, shades.text(value), "middle", ink, SIZE - 1))
    for i, name in enumerate(names):
        drawing.add(Text(left - 8.0, top + (i + 0.5) * CELL - GAP / 2, name, "end"))
        drawing.add(Text(left + (i + 0.5) * CELL - GAP / 2, top + side + 6.0, name, "end", upright=True))
    if not matrix.symmetric:
        drawing.add(Text(EDGE - 2.0, top + side / 2, "what this task ...", "middle", FAINT, upright=True))
        drawing.add(Text(left + side / 2, top + side + bottom - 12.0, "... is to this one", "middle", FAINT))
    if tree is not None:
        _tree(drawing, tree, left, top - 8.0)
    shades.bar(drawing, left + side + 14.0, top, side - GAP)
    return drawing


def _complete(matrix: AffinityMatrix) -> bool:
    """Whether every pair has a value; own entries may lack theirs."""
    gone = matrix.values.isnan()
    return not bool(gone.fill_diagonal_(False).any())


def _tree(drawing: Drawing, tree: Branch, left: float, foot: float) -> None:
    """The tree above the columns: a joint is the higher the less its two sides go together."""
    levels = _levels(tree)
    low, high = min(levels), max(levels)
    place = {leaf: left + (i + 0.5) * CELL - GAP / 2 for i, leaf in enumerate(tree.leaves)}

    def height(level: float) -> float:
        share = (high - level) / (high - low) if high > low else 0.0
        return foot - 22.0 - share * (TREE - 40.0)

    def draw(branch: Branch) -> tuple[float, float]:
        if branch.parts is None:
            return place[branch.leaves[0]], foot
        (x0, y0), (x1, y1) = draw(branch.parts[0]), draw(branch.parts[1])
        y, middle = height(branch.level), (x0 + x1) / 2
        drawing.add(Path(((x0, y0), (x0, y), (x1, y), (x1, y1)), INK, 1.4))
        drawing.add(Text(middle, y + 8.0, digits(branch.level, high - low), "middle", FAINT, SIZE - 2))
        return middle, y

    draw(tree)


def _levels(branch: Branch) -> list[float]:
    if branch.parts is None:
        return []
    return [branch.level, *_levels(branch.parts[0]), *_levels(branch.parts[1])]
