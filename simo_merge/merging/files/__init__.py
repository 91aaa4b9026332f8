"""Merging weights from files to files: reading and writing tensor by tensor."""

from simo_merge.merging.files.lazy_state import LazyState, open_state
from simo_merge.merging.files.merge_checkpoints import merge_checkpoints
from simo_merge.merging.files.merge_files import OUTPUT_DTYPES, merge_files
from simo_merge.merging.files.writer import SafetensorsWriter, ShardedWriter

__all__ = [
    "OUTPUT_DTYPES",
    "LazyState",
    "SafetensorsWriter",
    "ShardedWriter",
    "merge_checkpoints",
    "merge_files",
    "open_state",
]
