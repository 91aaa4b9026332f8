"""The weightings by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from simo_merge.errors import SimoError
from simo_merge.training.weighting.auto_lambda import AutoLambda
from simo_merge.training.weighting.base import Weighting
from simo_merge.training.weighting.cagrad import CaGrad
from simo_merge.training.weighting.cones import Mgda, UpGrad
from simo_merge.training.weighting.dwa import Dwa
from simo_merge.training.weighting.famo import Famo
from simo_merge.training.weighting.formulas import Equal, Geometric, RandomWeights, ScaleInvariant
from simo_merge.training.weighting.gradnorm import GradNorm
from simo_merge.training.weighting.jacobian import GradientMethod
from simo_merge.training.weighting.nash import NashMtl
from simo_merge.training.weighting.uncertainty import Uncertainty
from simo_merge.training.weighting.with_torchjd import AlignedMtl, GradDrop, ImtlG, PcGrad

WEIGHTINGS: dict[str, type[Weighting]] = {
    w.name: w
    for w in (
        Equal,
        Uncertainty,
        Dwa,
        RandomWeights,
        GradNorm,
        Geometric,
        ScaleInvariant,
        Famo,
        AutoLambda,
        PcGrad,
        GradDrop,
        Mgda,
        CaGrad,
        ImtlG,
        NashMtl,
        AlignedMtl,
        UpGrad,
    )
}


@dataclass(frozen=True)
class WeightingFacts:
    """What can be said of a weighting before it is used: its purpose, its options, and whether it needs T gradients."""

    name: str
    purpose: str
    options: Mapping[str, Any]
    needs_gradients: bool


def describe_weighting(name: str) -> WeightingFacts:
    """The facts of a registered weighting.

    Raises:
        SimoError: an unknown name.
    """
    kind = _class_of(name)
    purpose = (inspect.getdoc(kind) or "").partition("\n")[0]
    options = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
    return WeightingFacts(name, purpose, options, issubclass(kind, GradientMethod))


def weighting_named(name: str, options: Mapping[str, Any] | None = None) -> Weighting:
    """The weighting of this name with these options.

    Raises:
        SimoError: an unknown name or option (those that there are are listed), or a value out of range.
    """
    kind = _class_of(name)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = [option for option in options or {} if option not in known]
    if unknown:
        has = f"its options are {', '.join(known)}" if known else "it has none"
        raise SimoError(f"{name} has no option {', '.join(unknown)}; {has}")
    return kind(**(options or {}))


def _class_of(name: str) -> type[Weighting]:
    if name not in WEIGHTINGS:
        raise SimoError(f"unknown weighting {name!r}; known: {', '.join(WEIGHTINGS)}")
    return WEIGHTINGS[name]
