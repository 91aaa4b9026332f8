"""Models: a ViT encoder with taps, decoders, aligners, and what they make up."""

from simo_merge.models.aligners import Aligner, aligner_from_config
from simo_merge.models.block_changes import BlockChange, BlockChanges, block_changes_from_config
from simo_merge.models.decoders import (
    DECODERS,
    Decoder,
    DPTDecoder,
    LinearDecoder,
    RunningNorm2d,
    build_decoder,
    decoder_from_config,
)
from simo_merge.models.encoder import Encoder, Taps
from simo_merge.models.folding import fold_aligners
from simo_merge.models.models import BaseRecord, MergeRecord, MultiTaskModel, SingleTaskModel

__all__ = [
    "DECODERS",
    "Aligner",
    "BaseRecord",
    "BlockChange",
    "BlockChanges",
    "DPTDecoder",
    "Decoder",
    "Encoder",
    "LinearDecoder",
    "MergeRecord",
    "MultiTaskModel",
    "RunningNorm2d",
    "SingleTaskModel",
    "Taps",
    "aligner_from_config",
    "block_changes_from_config",
    "build_decoder",
    "decoder_from_config",
    "fold_aligners",
]
