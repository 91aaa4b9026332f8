"""What is known of published data sets: sizes of their files, ranges of their values, shares of their classes."""

from __future__ import annotations

from dataclasses import dataclass

Size = tuple[int, int]
"""Height and width."""

SIZES: dict[str, dict[str, tuple[Size, ...]]] = {
    "nyuv2": {
        "official": ((480, 640),),
        "extracted": ((480, 640),),
        "multimae": ((480, 640),),
        "nyud-mt": ((480, 640), (425, 560)),
        "mtan": ((288, 384),),
        "parquet": ((288, 384),),
    },
    "cityscapes": {
        "official": ((1024, 2048),),
        "mtan": ((128, 256), (256, 512)),
        "png": ((256, 512),),
    },
    "taskonomy": dict.fromkeys(("official", "downloader", "tars", "buildings", "building"), ((512, 512),)),
    "rooms": {"folder": ((126, 168),)},
}
"""Data set -> layout -> the sizes that it is published in.

Sources. NYUv2: QianshengGu/NYU-d-v2-Tools, lorenmt/mtan; nyud-mt: SimonVandenhende/Multi-Task-Learning-PyTorch
(480x640) and brdav/atrc (425x560, without the white frame). Cityscapes: mcordts/cityscapesScripts, lorenmt/mtan,
lorenmt/auto-lambda. Taskonomy: StanfordVL/taskonomy data/README.md. The sizes of extracted and multimae are inferred:
their tools cut nothing off the official frames.
"""


@dataclass(frozen=True)
class Shares:
    """How large the part of each class in the labelled pixels of a training split is.

    Attributes:
        percent: Class -> percent, in the order of the ids.
        source: Where the numbers are from.
    """

    percent: dict[str, float]
    source: str


NYUV2_13 = Shares(
    {
        "bed": 4.9,
        "books": 0.7,
        "ceiling": 0.9,
        "chair": 4.8,
        "floor": 12.8,
        "furniture": 17.9,
        "objects": 15.9,
        "picture": 2.3,
        "sofa": 3.5,
        "table": 4.4,
        "tv": 0.6,
        "wall": 26.1,
        "window": 5.3,
    },
    "the 40 classes' shares below, summed by ankurhanda/nyuv2-meta-data's map to 13 classes",
)
NYUV2_40 = Shares(
    dict(
        zip(
            (
                *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
                *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror"),
                *("floor mat", "clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel"),
                *("shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp"),
                *("bathtub", "bag", "otherstructure", "otherfurniture", "otherprop"),
            ),
            (
                *(23.66, 11.87, 7.65, 4.91, 4.81, 3.53, 2.89, 2.40, 2.28, 2.25, 2.25, 1.93, 1.84, 1.46, 1.23, 1.18),
                *(1.18, 1.15, 1.05, 0.95, 0.91, 0.90, 0.73, 0.72, 0.62, 0.52, 0.46, 0.43, 0.44, 0.39, 0.37, 0.37),
                *(0.36, 0.36, 0.35, 0.33, 0.31, 2.31, 2.51, 6.13),
            ),
            strict=True,
        )
    ),
    "a count over the 795 training images in github.com/anheidelonghu/ACNet/issues/1",
)
CITYSCAPES_19 = Shares(
    dict(
        zip(
            (
                *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
                *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
                *("motorcycle", "bicycle"),
            ),
            (
                *(36.9, 6.1, 22.8, 0.65, 0.88, 1.23, 0.20, 0.55, 15.9, 1.16, 4.0, 1.22, 0.14, 7.0, 0.27, 0.24, 0.24),
                *(0.10, 0.42),
            ),
            strict=True,
        )
    ),
    "class weights 1 / ln(1.1 + p) in the training code of Eromera/erfnet_pytorch, solved for p and scaled to sum to 1",
)
CITYSCAPES_7 = Shares(
    {
        "flat": 43.0,
        "construction": 24.3,
        "object": 2.0,
        "nature": 17.1,
        "sky": 4.0,
        "human": 1.4,
        "vehicle": 8.3,
    },
    "the 19 classes' shares above, summed by category",
)
SHARES: dict[str, tuple[Shares, ...]] = {
    "nyuv2": (NYUV2_13, NYUV2_40),
    "cityscapes": (CITYSCAPES_19, CITYSCAPES_7),
}
"""Data set -> the shares of its classes, for each set of classes."""


def shares_of(data: str, classes: tuple[str, ...]) -> Shares | None:
    """The known shares for exactly these classes, in this order; None where there are none."""
    plain = [_plain(name) for name in classes]
    return next((known for known in SHARES.get(data, ()) if [_plain(n) for n in known.percent] == plain), None)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


DEPTH_AT_MOST: dict[str, tuple[float, str]] = {
    "nyuv2": (10.5, "the Kinect's files end at 10 m"),
    "taskonomy": (127.9, "the stored 65535, which means that there is none, is 128 m"),
}
"""Data set -> a depth in metres that it does not have, and why."""

PUBLISHED_DISPARITY_AT_MOST = 1.0
"""A stored 16-bit number divided by 65535, as in MTAN's Cityscapes (lorenmt/mtan#25), is a fraction."""
