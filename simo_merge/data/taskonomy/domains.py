"""Taskonomy's domains: where each lies, what its numbers mean, and the task that it becomes.

Where a number is the choice of one code base, `Domain.origin` names it. `datasets/taskonomy/README.md` tells which of
it was seen in published files.
"""

from __future__ import annotations

from dataclasses import dataclass

from simo_merge.data.labels import DepthLabels, Labels, NormalsLabels, RegressionLabels, SegmentationLabels

RGB = "rgb"
MASK_VALID = "mask_valid"
DEPTH_ZBUFFER = "depth_zbuffer"

FILE_NAMES: dict[str, tuple[str, ...]] = {
    "segment_semantic": ("segmentsemantic", "segment_semantic"),
    MASK_VALID: (DEPTH_ZBUFFER, MASK_VALID),
}
"""Domain -> what the names of its files call it, where that is not the domain itself; the published name first."""

CLASSES = (
    "background",
    "bottle",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
)
"""Ids 1 to 17 of `segment_semantic`; 0 is "uncertain". From StanfordVL/taskonomy, taskbank/assets/web_assets/
pseudosemantics/coco_selected_classes.txt, and data/README.md for the ids 0 and 1."""


@dataclass(frozen=True)
class Domain:
    """One kind of label.

    Attributes:
        folder: Its name on disk.
        labels: How a file is read. Stored numbers under `invalid` mean "no label".
        origin: Where the numbers come from.
        geometric: Whether it has a value only where the scanned mesh has a surface, so that `mask_valid` holds for it.
        spare_channels: Further channels that files may have, after those that count.
    """

    folder: str
    labels: Labels
    origin: str
    geometric: bool = False
    spare_channels: int = 0


def _depth(folder: str) -> Domain:
    # 65535 is what the mesh does not cover; 0 m does not occur in the files seen, and can be no distance.
    labels = DepthLabels(scale=1 / 512, unit="m", invalid=(0.0, 65535.0), bits=16, typical=3.0)
    origin = "1/512 m: StanfordVL/taskonomy data/README.md; 65535: EPFL-VILAB/omnidata issue 4; median about 3 m"
    return Domain(folder, labels, origin, geometric=True)


def _map(folder: str, full: float, bits: int, origin: str, *, geometric: bool = False, spare: int = 0) -> Domain:
    labels = RegressionLabels(scale=1 / full, bits=16 if bits == 16 else 8, value_range=(0.0, 1.0))
    return Domain(folder, labels, origin, geometric=geometric, spare_channels=spare)


DOMAINS: dict[str, Domain] = {
    "segmentation": Domain(
        "segment_semantic",
        SegmentationLabels(classes=CLASSES, first_class=1, invalid=(0,)),
        "StanfordVL/taskonomy data/README.md: pseudo labels; 0 is uncertain and to be masked",
    ),
    "depth": _depth(DEPTH_ZBUFFER),
    "depth_euclidean": _depth("depth_euclidean"),
    "normals": Domain(
        "normal",
        # On disk z points away from the viewer, whatever is written about it: see the card.
        NormalsLabels(axes=("right", "down", "away")),
        "fitted to depth_zbuffer of a published view; grey (128, 128, 128) where there is no surface",
        geometric=True,
    ),
    "reshading": _map("reshading", 255, 8, "8-bit; grey stored as three equal channels", geometric=True, spare=2),
    "principal_curvature": Domain(
        "principal_curvature",
        # x = 127 (1 + 0.03 m k): 0.5 is flat, 0 and 1 a radius of 3 cm. The third channel is always 0.
        RegressionLabels(scale=1 / 254, bits=8, channels=2, invalid=(0.0,), value_range=(0.0, 1.0)),
        "EPFL-VILAB/omnidata omnidata_annotator/scripts/create_curvature_images.py; 127 is flat: data/README.md",
        geometric=True,
        spare_channels=1,
    ),
    "edge_texture": _map("edge_texture", 11041, 16, "d23845jg/simo_merging training/create_dataset.py"),
    "edge_occlusion": _map("edge_occlusion", 4000, 16, "EPFL-VILAB/XTConsistency task_configs.py", geometric=True),
    "keypoints2d": _map("keypoints2d", 3129, 16, "d23845jg/simo_merging training/create_dataset.py"),
    "keypoints3d": _map("keypoints3d", 64131, 16, "EPFL-VILAB/XTConsistency task_configs.py", geometric=True),
}
"""Task -> domain."""
