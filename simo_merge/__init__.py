"""simo_merge: merges single-task dense-prediction ViTs, then re-aligns the features without labels."""

from simo_merge import _torchvision  # noqa: F401  # isort: skip  # must come before anything that imports torchvision
from simo_merge.checkpoints import from_smp, load, load_expert, save
from simo_merge.data import FolderDataset, ImageFolder, Sample, open_dataset, rooms
from simo_merge.errors import SimoError
from simo_merge.evaluation import evaluate
from simo_merge.merging import TaskArithmetic, WeightAverage, merge
from simo_merge.models import Encoder, MultiTaskModel, SingleTaskModel, build_decoder
from simo_merge.realign import (
    BatchNormRecalibration,
    HeadRealignment,
    LinearSurgery,
    NormRecalibration,
    Surgery,
    realign,
)
from simo_merge.results import ResultRow
from simo_merge.selection import select_by_agreement, select_by_validation
from simo_merge.tasks import Depth, Disparity, Normals, Regression, Segmentation
from simo_merge.training import TrainConfig, train_expert
from simo_merge.weights import build_vit, load_base

__version__ = "0.1.0"

__all__ = [
    "BatchNormRecalibration",
    "Depth",
    "Disparity",
    "Encoder",
    "FolderDataset",
    "HeadRealignment",
    "ImageFolder",
    "LinearSurgery",
    "MultiTaskModel",
    "NormRecalibration",
    "Normals",
    "Regression",
    "ResultRow",
    "Sample",
    "Segmentation",
    "SimoError",
    "SingleTaskModel",
    "Surgery",
    "TaskArithmetic",
    "TrainConfig",
    "WeightAverage",
    "__version__",
    "build_decoder",
    "build_vit",
    "evaluate",
    "from_smp",
    "load",
    "load_base",
    "load_expert",
    "merge",
    "open_dataset",
    "realign",
    "rooms",
    "save",
    "select_by_agreement",
    "select_by_validation",
    "train_expert",
]
