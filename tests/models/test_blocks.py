"""An encoder run block by block gives what it gives as a whole."""

from __future__ import annotations

import pytest
import torch

from simo_merge.models import Encoder
from simo_merge.models.blocks import block_inputs, run_block, used_blocks
from simo_merge.weights.architecture import create_vit
from tests.tiny import NAME, SIZE

KINDS = {
    "plain": (NAME, {"depth": 4, "embed_dim": 48, "num_heads": 3}),
    "registers": (NAME, {"depth": 4, "embed_dim": 48, "num_heads": 3, "reg_tokens": 2, "init_values": 0.1}),
    "rotated positions": ("vit_small_patch16_dinov3", {"depth": 4, "embed_dim": 48, "num_heads": 3}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_run_one_by_one_give_the_encoders_taps(kind: str) -> None:
    name, changes = KINDS[kind]
    encoder = Encoder(create_vit(name, SIZE, **changes), name, (0, 2)).eval()
    images = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        found = block_inputs(encoder, images)
        tokens, taps = found.tokens, []
        assert len(used_blocks(encoder)) == len(found.beside) == 3
        for index, (block, beside) in enumerate(zip(used_blocks(encoder), found.beside, strict=True)):
            tokens = run_block(block, tokens, beside)
            taps += [tokens] if index in encoder.taps else []
        whole = encoder(images)
    for of_map, of_prefix, found_tokens in zip(whole.maps, whole.prefix, taps, strict=True):
        expected = torch.cat([of_prefix, of_map.flatten(2).transpose(1, 2)], dim=1)  # (B, C, h, w) -> (B, P + h*w, C)
        torch.testing.assert_close(found_tokens, expected, rtol=0, atol=0)


def test_the_encoder_runs_its_own_blocks_again_afterwards() -> None:
    encoder = Encoder(create_vit(NAME, SIZE, depth=2, embed_dim=48, num_heads=3), NAME, (1,)).eval()
    images = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        before = encoder(images)
        block_inputs(encoder, images)
        assert torch.equal(encoder(images).maps[0], before.maps[0])
    assert all("forward" not in vars(block) for block in used_blocks(encoder))
