"""Merging: weights -> weights."""

from simo_merge.merging.merge import find_base, merge, merge_states
from simo_merge.merging.methods import (
    MERGE_METHODS,
    MergeMethod,
    TaskArithmetic,
    WeightAverage,
    merge_method,
)
from simo_merge.merging.parameter import Parameter, Parameters

__all__ = [
    "MERGE_METHODS",
    "MergeMethod",
    "Parameter",
    "Parameters",
    "TaskArithmetic",
    "WeightAverage",
    "find_base",
    "merge",
    "merge_method",
    "merge_states",
]
