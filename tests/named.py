"""Models whose encoder has a name that timm knows: a checkpoint rebuilds the encoder by its name."""

from __future__ import annotations

from simo_merge.models import BaseRecord, Encoder, SingleTaskModel, build_decoder
from simo_merge.tasks import Segmentation, Task
from simo_merge.weights import Base, build_vit, fingerprint

NAME = "test_vit"  # timm's own model for tests: 0.4 M parameters, 16x16 patches
SIZE = (32, 48)
TAPS = (1, 3, 5)
LIGHT = {"intermediate_channels": (4, 6, 8), "fusion_channels": 4}
SEGMENTATION = Segmentation(classes=("floor", "Bücherregal"))
RECORD = BaseRecord(NAME, "timm:tiny", "0" * 64)


def named_base() -> Base:
    vit = build_vit(NAME, SIZE)
    return Base(vit, NAME, "timm:tiny", fingerprint(vit.state_dict()))


def named_encoder() -> Encoder:
    return Encoder(build_vit(NAME, SIZE), NAME, TAPS)


def named_expert(task: Task = SEGMENTATION) -> SingleTaskModel:
    encoder = named_encoder()
    decoder = build_decoder("dpt", encoder, task.out_channels, **LIGHT)
    return SingleTaskModel(encoder, decoder, task, RECORD, {"recipe": {"steps": 3}, "image_size": [32, 48]}).eval()
