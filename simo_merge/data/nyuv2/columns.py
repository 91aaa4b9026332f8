"""One cell of a column of nested lists as an array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simo_merge.data.nyuv2.matlab import needed
from simo_merge.errors import SimoError


def to_numpy(where: Path, column: Any, row: int) -> npt.NDArray[np.generic]:
    """The cell of a chunked column of lists, of any depth and kind, as an array of as many axes.

    Lists may be of variable or of fixed size. Where the library `datasets` has been imported, its extension types turn
    up in their stead, which hold such lists.

    Args:
        where: Where the column is, for messages.
        column: A `pyarrow.ChunkedArray`.
        row: The row.

    Raises:
        SimoError: nothing there, or lists of different lengths.
    """
    arrow, compute = needed("pyarrow", where), needed("pyarrow.compute", where)
    lists = (arrow.types.is_list, arrow.types.is_large_list, arrow.types.is_fixed_size_list)
    values = _chunk(column, row)
    shape: list[int] = []
    while True:
        if isinstance(values, arrow.ExtensionArray):
            values = values.storage
        if not any(is_one(values.type) for is_one in lists):
            break
        lengths = compute.unique(compute.list_value_length(values)).to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            raise SimoError(f"{where}: lists of the lengths {lengths[:5]}, expected one length; fetch the file again")
        shape.append(int(lengths[0]))
        values = values.flatten()
    if values.null_count or not shape:
        raise SimoError(f"{where}: {values.null_count} values are missing, expected nested lists of numbers")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)


def _chunk(column: Any, row: int) -> Any:
    """The row of a chunked column as an array of length 1."""
    for chunk in column.chunks:
        if row < len(chunk):
            return chunk.slice(row, 1)
        row -= len(chunk)
    raise IndexError(row)
