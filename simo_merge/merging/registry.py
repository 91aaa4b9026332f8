"""The merge methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from simo_merge.errors import SimoError, nearest
from simo_merge.merging.elementwise.dare import Dare
from simo_merge.merging.elementwise.emr import Emr
from simo_merge.merging.elementwise.linear import PreferenceSoup, TaskArithmetic, WeightAverage
from simo_merge.merging.elementwise.lines import Lines
from simo_merge.merging.elementwise.slerp import Slerp
from simo_merge.merging.elementwise.sparse import Breadcrumbs, MagnitudeMask
from simo_merge.merging.elementwise.tall import Consensus, TallMasks
from simo_merge.merging.elementwise.ties import Ties
from simo_merge.merging.from_images.fisher import Fisher
from simo_merge.merging.from_images.lot import Lot
from simo_merge.merging.from_images.magic import Magic, MagicWeights
from simo_merge.merging.from_images.regmean import RegMean, RegMeanPlusPlus
from simo_merge.merging.from_images.subspace import Subspace
from simo_merge.merging.learned.adamerging import AdaMerging
from simo_merge.merging.learned.atlas import Atlas
from simo_merge.merging.method import MergeMethod
from simo_merge.merging.spectral.iso import IsoC, IsoCts
from simo_merge.merging.spectral.tsv import Tsvm
from simo_merge.merging.spectral.wudi import Wudi

MERGE_METHODS: dict[str, type[MergeMethod]] = {
    m.name: m
    for m in (
        WeightAverage,
        TaskArithmetic,
        PreferenceSoup,
        Ties,
        Dare,
        Breadcrumbs,
        MagnitudeMask,
        Slerp,
        Lines,
        Consensus,
        TallMasks,
        Emr,
        AdaMerging,
        Atlas,
        Tsvm,
        IsoC,
        IsoCts,
        Wudi,
        RegMean,
        RegMeanPlusPlus,
        Lot,
        Fisher,
        Subspace,
        Magic,
        MagicWeights,
    )
}


def method_class(name: str) -> type[MergeMethod]:
    """The class of the method of this name.

    Raises:
        SimoError: an unknown name; the known ones are listed.
    """
    if name not in MERGE_METHODS:
        known = sorted(MERGE_METHODS)
        raise SimoError(f"unknown merge method {name!r}; known: {', '.join(known)}{nearest(name, known)}")
    return MERGE_METHODS[name]


def merge_method(name: str, parameters: Mapping[str, Any] | None = None) -> MergeMethod:
    """The method of this name with these parameters.

    Raises:
        SimoError: an unknown name (the known ones are listed) or a parameter that the method does not have.
    """
    kind = method_class(name)
    switches = {field.name for field in fields(kind) if field.type == "bool"}  # type: ignore[arg-type]
    for option, value in (parameters or {}).items():
        if option in switches and not isinstance(value, bool):
            raise SimoError(f"{option} of {name} is true or false, got {value!r}")
    try:
        return kind(**(parameters or {}))
    except TypeError as error:
        raise SimoError(f"merge method {name!r} does not take {dict(parameters or {})}: {error}") from error
