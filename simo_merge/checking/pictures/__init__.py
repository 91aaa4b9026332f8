"""What was counted, as pictures to look at."""

from simo_merge.checking.pictures.histograms import histograms
from simo_merge.checking.pictures.sheet import contact_sheet

__all__ = ["contact_sheet", "histograms"]
