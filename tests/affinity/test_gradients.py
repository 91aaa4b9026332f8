"""Lookahead and gradient cosines against steps made by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from simo_merge.affinity.gradients import gradient_affinity
from simo_merge.data import Batch
from simo_merge.models import Encoder, MultiTaskModel
from simo_merge.scoring import batches
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TAPS, TinyData, state_of, tiny_base, tiny_expert

TASKS = (SEGMENTATION, DEPTH, NORMALS)
LENGTH = 0.05


def model_at_base() -> MultiTaskModel:
    base = tiny_base()
    experts = [tiny_expert(task, base, seed) for seed, task in enumerate(TASKS, start=1)]
    decoders = {e.task.name: e.decoder for e in experts}
    return MultiTaskModel(Encoder(base.vit, base.name, TAPS), decoders, {t.name: t for t in TASKS}).eval()


def loss_of(model: MultiTaskModel, batch: Batch, name: str) -> Tensor:
    return model.tasks[name].loss(model(batch.images, [name])[name], batch.targets[name], batch.masks[name])


def gradient_of(model: MultiTaskModel, batch: Batch, name: str) -> list[Tensor]:
    model = copy.deepcopy(model)
    loss_of(model, batch, name).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.encoder.vit.parameters()]


def test_lookahead_is_the_part_by_which_a_step_lowers_a_loss() -> None:
    model, images = model_at_base(), TinyData(6, TASKS, seed=1)
    found = gradient_affinity(model, images, LENGTH, count=2, batch_size=2).lookahead
    expected = torch.zeros(3, 3, dtype=torch.float64)
    used = list(batches(images, 2))[:2]
    for batch in used:
        for s, source in enumerate(model.tasks):
            gradient = gradient_of(model, batch, source)
            norm = sum(float(g.square().sum()) for g in gradient) ** 0.5
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for p, g in zip(moved.encoder.vit.parameters(), gradient, strict=True):
                    p -= LENGTH / norm * g
                for t, target in enumerate(model.tasks):
                    drop = 1 - loss_of(moved, batch, target) / loss_of(model, batch, target)
                    expected[s, t] += float(drop) / len(used)
    assert torch.allclose(found, expected, atol=2e-5)
    assert (found.diagonal() > 0).all()


def test_gradient_cosines_are_those_of_gradients_added_up_over_batches() -> None:
    model, images = model_at_base(), TinyData(4, TASKS, seed=1)
    found = gradient_affinity(model, images, LENGTH, count=9, batch_size=2)
    flat = []
    for name in model.tasks:
        total = [gradient_of(model, batch, name) for batch in batches(images, 2)]
        flat.append(torch.cat([sum(parts).flatten() for parts in zip(*total, strict=True)]))
    for s in range(3):
        for t in range(3):
            expected = torch.nn.functional.cosine_similarity(flat[s], flat[t], dim=0)
            assert float(found.whole.cosine()[s, t]) == pytest.approx(float(expected), abs=1e-4)
    assert list(found.profile)[:3] == ["embeddings", "block 0", "block 1"]


def test_the_model_is_afterwards_what_it_was() -> None:
    model = model_at_base()
    model.encoder.requires_grad_(False)
    before = state_of(model)
    gradient_affinity(model, TinyData(2, TASKS), LENGTH, count=1, batch_size=2)
    assert state_of(model) == before
    assert not any(p.requires_grad or p.grad is not None for p in model.encoder.parameters())


def test_a_task_without_labels_is_unknown_and_a_batch_without_a_valid_one_is_left_out() -> None:
    model, images = model_at_base(), TinyData(4, (SEGMENTATION, NORMALS), seed=1)
    for sample in images.samples[:2]:
        sample.masks["normals"][:] = False
    found = gradient_affinity(model, images, LENGTH, count=2, batch_size=2)
    assert found.lookahead[1].isnan().all()
    assert found.lookahead[:, 1].isnan().all()
    assert found.whole.cosine()[0, 1].isnan()
    images.samples = images.samples[2:]
    images.keys = images.keys[2:]
    later = gradient_affinity(model, images, LENGTH, count=2, batch_size=2)
    assert torch.allclose(found.lookahead[2, [0, 2]], later.lookahead[2, [0, 2]], atol=1e-6)
    assert torch.isfinite(found.lookahead[0, 0])
