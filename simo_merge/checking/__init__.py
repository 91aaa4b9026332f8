"""Checking a data set: are pixels, masks, units and splits right, and if not, what is wrong?

`check_dataset` reads a data set once, counts (`statistics`), and lets every rule look at the counts (`rules`). What is
known of published data sets is in `facts`; `pictures` draws what was counted.
"""

from simo_merge.checking.check import check_dataset, judge
from simo_merge.checking.findings import Finding, Findings
from simo_merge.checking.statistics import Statistics

__all__ = ["Finding", "Findings", "Statistics", "check_dataset", "judge"]
