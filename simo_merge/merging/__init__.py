"""Merging: weights -> weights."""

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
from simo_merge.merging.merge import MergedStates, find_base, merge, merge_states
from simo_merge.merging.method import DataMergeMethod, MergeData, MergeMethod, TaskSpecificMethod
from simo_merge.merging.parameter import Parameter, Parameters
from simo_merge.merging.registry import MERGE_METHODS, merge_method
from simo_merge.merging.spectral.iso import IsoC, IsoCts
from simo_merge.merging.spectral.tsv import Tsvm
from simo_merge.merging.spectral.wudi import Wudi

__all__ = [
    "MERGE_METHODS",
    "AdaMerging",
    "Atlas",
    "Breadcrumbs",
    "Consensus",
    "Dare",
    "DataMergeMethod",
    "Emr",
    "Fisher",
    "IsoC",
    "IsoCts",
    "Lines",
    "Lot",
    "Magic",
    "MagicWeights",
    "MagnitudeMask",
    "MergeData",
    "MergeMethod",
    "MergedStates",
    "Parameter",
    "Parameters",
    "PreferenceSoup",
    "RegMean",
    "RegMeanPlusPlus",
    "Slerp",
    "Subspace",
    "TallMasks",
    "TaskArithmetic",
    "TaskSpecificMethod",
    "Ties",
    "Tsvm",
    "WeightAverage",
    "Wudi",
    "find_base",
    "merge",
    "merge_method",
    "merge_states",
]
