"""What is counted of a data set, in one pass and in bounded memory."""

from simo_merge.checking.statistics.classes import ClassStatistics
from simo_merge.checking.statistics.collect import Statistics, collect, spaced
from simo_merge.checking.statistics.coverage import TaskStatistics
from simo_merge.checking.statistics.edges import EdgeStatistics, Fit
from simo_merge.checking.statistics.geometry import Orientation, Stereo
from simo_merge.checking.statistics.images import ImageStatistics
from simo_merge.checking.statistics.normals import NormalsStatistics
from simo_merge.checking.statistics.splits import SplitReport
from simo_merge.checking.statistics.stored import StoredStatistics
from simo_merge.checking.statistics.values import ValueHistogram, ValueStatistics
from simo_merge.checking.statistics.void import LabelsByClass

__all__ = [
    "ClassStatistics",
    "EdgeStatistics",
    "Fit",
    "ImageStatistics",
    "LabelsByClass",
    "NormalsStatistics",
    "Orientation",
    "SplitReport",
    "Statistics",
    "Stereo",
    "StoredStatistics",
    "TaskStatistics",
    "ValueHistogram",
    "ValueStatistics",
    "collect",
    "spaced",
]
