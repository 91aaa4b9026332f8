"""The report of an affinity analysis: heat maps, layer profiles, lambda curves, groupings, on one page."""

from simo_merge.report.affinity.contents import AffinityReport
from simo_merge.report.affinity.page import write_affinity_report

__all__ = ["AffinityReport", "write_affinity_report"]
