"""Merging: weights -> weights."""

from simo_merge.merging.linear import TaskArithmetic, WeightAverage
from simo_merge.merging.merge import MergedStates, find_base, merge, merge_states
from simo_merge.merging.method import DataMergeMethod, MergeData, MergeMethod, TaskSpecificMethod
from simo_merge.merging.parameter import Parameter, Parameters
from simo_merge.merging.registry import MERGE_METHODS, merge_method

__all__ = [
    "MERGE_METHODS",
    "DataMergeMethod",
    "MergeData",
    "MergeMethod",
    "MergedStates",
    "Parameter",
    "Parameters",
    "TaskArithmetic",
    "TaskSpecificMethod",
    "WeightAverage",
    "find_base",
    "merge",
    "merge_method",
    "merge_states",
]
