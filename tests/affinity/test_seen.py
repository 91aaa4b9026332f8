"""What is kept of captured features, and that it does not depend on how many are in memory at a time."""

from __future__ import annotations

import pytest
import torch

from simo_merge.affinity import seen as module
from simo_merge.affinity.agreement import CrossAgreement
from simo_merge.affinity.seen import Seen, chosen_patches, parts, see
from simo_merge.realign import capture
from simo_merge.tasks.agreement import prediction_distance
from tests.tiny import DEPTH, SEGMENTATION, TinyData, tiny_base, tiny_expert


def test_every_position_of_the_patch_grid_is_kept_equally_often() -> None:
    chosen = chosen_patches(range(12), patches=6, tokens=4, seed=3)
    assert chosen.shape == (12, 4)
    assert torch.bincount(chosen.flatten()).tolist() == [8] * 6
    assert all(len(set(row)) == 4 for row in chosen.tolist())
    assert torch.equal(chosen[5:7], chosen_patches(range(5, 7), 6, 4, 3))
    assert chosen_patches([0, 1], patches=6, tokens=100, seed=3).tolist() == [list(range(6))] * 2


@pytest.mark.parametrize("step", [1, 2])
def test_chunks_give_what_a_whole_capture_gives(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    encoder, images = tiny_expert(DEPTH, tiny_base()).encoder, TinyData(7)
    monkeypatch.setattr(module, "CHUNK", 3)
    found: Seen | None = None
    for part in parts(images, step):
        assert not part.tasks
        _, new = see(encoder, part, 4, 2, "float32", 0, "features")
        found = new if found is None else found + new
    assert found is not None
    whole = capture(encoder, images)
    chosen = chosen_patches(range(7), 6, 4, 0)
    for tap in range(2):
        expected = torch.stack([p[c] for p, c in zip(whole.patches[tap], chosen, strict=True)])
        assert torch.allclose(found.features.patches[tap], expected[::step], atol=1e-5)
        assert torch.allclose(found.features.prefix[tap], whole.prefix[tap][::step], atol=1e-5)
        assert torch.allclose(found.means[tap], whole.patches[tap].mean(1)[::step], atol=1e-5)
    assert found.features.keys == images.keys[::step]


def test_agreement_is_the_distance_to_the_expert_relative_to_that_of_the_base() -> None:
    base, images = tiny_base(), TinyData(5)
    experts = [tiny_expert(SEGMENTATION, base, 1), tiny_expert(DEPTH, base, 2)]
    start = tiny_expert(DEPTH, base, 3, shift=0.0).encoder
    agreement = CrossAgreement(experts, batch_size=2, precision="float32")
    for part in parts(images):
        features = {e.task.name: capture(e.encoder, part) for e in experts}
        agreement.add(capture(start, part), features)
    found = agreement.values()
    pictures = torch.stack([sample.image for sample in images.samples])
    with torch.inference_mode():
        for s, source in enumerate(experts):
            for t, target in enumerate(experts):
                own = target(pictures)
                one, zero = (target.decode(e(pictures), (32, 48)) for e in (source.encoder, start))
                distances = [prediction_distance(target.task, prediction, own) for prediction in (one, zero)]
                assert float(found[s, t]) == pytest.approx(float(1 - distances[0] / distances[1]), rel=1e-3)
    assert found.diagonal().tolist() == [1.0, 1.0]


def test_agreement_is_unknown_where_the_base_serves_a_decoder_perfectly() -> None:
    base, images = tiny_base(), TinyData(2)
    still, other = tiny_expert(SEGMENTATION, base, 1, shift=0.0), tiny_expert(DEPTH, base, 2)
    agreement = CrossAgreement([still, other], batch_size=2, precision="float32")
    features = {e.task.name: capture(e.encoder, images) for e in (still, other)}
    agreement.add(features["segmentation"], features)
    assert agreement.values()[:, 0].isnan().all()
    assert agreement.values()[0, 1] == pytest.approx(0, abs=1e-6)
