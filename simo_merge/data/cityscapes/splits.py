"""The splits of copies whose images have numbers instead of names."""

from __future__ import annotations

from simo_merge.data.cityscapes.layout import DATA, PUBLISHED_COUNTS
from simo_merge.data.splits import published
from simo_merge.errors import SimoError

SIMO = "simo-2504.11268"
"""The split of the SIMO paper (arXiv 2504.11268): MTAN's 2975 training images parted by a seed, its val as test."""
SIMO_SPLITS = tuple(f"{SIMO}/{part}" for part in ("train", "val", "test"))
NUMBERED_SPLITS = ("train", "val")


def listed(name: str) -> tuple[str, ...]:
    """The keys of a split, `{train,val}/{number}`, in its order.

    Args:
        name: One of `NUMBERED_SPLITS`, or of `SIMO_SPLITS`.
    """
    if name in SIMO_SPLITS:
        return published(DATA, name)
    return tuple(f"{name}/{number}" for number in range(PUBLISHED_COUNTS[name]))


def not_numbered(name: str | None, layout: str) -> SimoError:
    """The error for a split of the SIMO paper where images do not have MTAN's numbers."""
    return SimoError(
        f"split {name!r} is a list of the numbers that images have in MTAN's .npy archive, and which number is which "
        f"picture was not published; the layout {layout!r} has other names. Use the layout mtan, or split train or val."
    )
