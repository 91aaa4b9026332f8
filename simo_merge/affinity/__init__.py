"""Which tasks help or hurt each other in one encoder, told before anything is trained."""

from simo_merge.affinity.grouping import Grouping, group_by_measured, group_tasks, measured_value
from simo_merge.affinity.matrix import AffinityMatrix, Needs
from simo_merge.affinity.measure import affinity
from simo_merge.affinity.measures import MEASURES, Measure
from simo_merge.affinity.options import AffinityOptions
from simo_merge.affinity.sweep import LAMBDAS, LambdaSweep, lambda_sweep
from simo_merge.affinity.tables import read_table

__all__ = [
    "LAMBDAS",
    "MEASURES",
    "AffinityMatrix",
    "AffinityOptions",
    "Grouping",
    "LambdaSweep",
    "Measure",
    "Needs",
    "affinity",
    "group_by_measured",
    "group_tasks",
    "lambda_sweep",
    "measured_value",
    "read_table",
]
