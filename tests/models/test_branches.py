"""Tasks that differ inside the encoder: what they share is run once, and what they do not change is as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from simo_merge.errors import SimoError
from simo_merge.models import BlockChange, BlockChanges, Encoder, MultiTaskModel, SingleTaskModel
from simo_merge.models.blocks import used_blocks
from simo_merge.models.branches import branching_passes
from simo_merge.weights.architecture import create_vit
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, SIZE, state_of, tiny_base, tiny_expert

TASKS = {task.name: task for task in (SEGMENTATION, DEPTH, NORMALS)}
NORMS = {"norm1": 48, "norm2": 48}


@pytest.fixture
def model() -> MultiTaskModel:
    experts = {name: tiny_expert(task, tiny_base(), seed) for seed, (name, task) in enumerate(TASKS.items())}
    return MultiTaskModel(experts["depth"].encoder, {n: e.decoder for n, e in experts.items()}, TASKS).eval()


def surgery(rank: int = 3, prefix: int = 1, kind: str = "surgery") -> dict[str, Any]:
    return {"kind": kind, "tap_channels": [48], "prefix_tokens": prefix, "rank": rank}


def norms_as_they_are(block: nn.Module) -> BlockChange:
    change = BlockChange(NORMS)
    for name in NORMS:
        change.norm(name).load_state_dict(block.get_submodule(name).state_dict())
    return change


def shaken(change: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in change.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return change


def calls(model: MultiTaskModel) -> dict[int, int]:
    """How often each block is run, counted from now on; the embedding is -1."""
    found = dict.fromkeys(range(-1, model.encoder.depth), 0)
    model.encoder.vit.get_submodule("patch_embed").register_forward_hook(lambda *_: found.update({-1: found[-1] + 1}))
    for index, block in enumerate(model.encoder.vit.get_submodule("blocks").children()):
        block.register_forward_hook(lambda *_, index=index: found.update({index: found[index] + 1}))
    return found


@pytest.mark.parametrize("kind", ["plain", "registers", "rotated positions", "no prefix"])
@pytest.mark.parametrize("size", [SIZE, (30, 45)])
def test_changes_that_are_the_identity_change_nothing_bit_for_bit(kind: str, size: tuple[int, int]) -> None:
    name, changes = {
        "plain": ("vit_tiny_patch16_224", {}),
        "registers": ("vit_tiny_patch16_224", {"reg_tokens": 2, "init_values": 0.1}),
        "rotated positions": ("vit_small_patch16_dinov3", {}),
        "no prefix": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    }[kind]
    torch.manual_seed(3)
    encoder = Encoder(create_vit(name, SIZE, depth=4, embed_dim=48, num_heads=3, **changes), name, (0, 3)).eval()
    own = {
        index: BlockChange(NORMS if index != 2 else None, surgery(prefix=encoder.prefix_tokens, kind=kind_of))
        for index, kind_of in ((1, "surgery"), (2, "linear-surgery"), (3, "surgery"))
    }
    for index in (1, 3):
        own[index].norms.load_state_dict(norms_as_they_are(used_blocks(encoder)[index]).norms.state_dict())
    expert = tiny_expert(DEPTH, tiny_base())
    model = MultiTaskModel(
        encoder, {"depth": expert.decoder}, {"depth": DEPTH}, block_changes={"depth": BlockChanges(own)}
    )
    images = torch.rand(2, 3, *size)
    with torch.inference_mode():
        before, after = encoder(images), model.eval().taps(images, ["depth"])["depth"]
    for ours, theirs in zip((*after.maps, *after.prefix), (*before.maps, *before.prefix), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.shape == theirs.shape


def test_a_task_with_changes_reads_them_and_the_other_tasks_read_the_encoder_as_it_is(model: MultiTaskModel) -> None:
    images = torch.rand(2, 3, *SIZE)
    block = used_blocks(model.encoder)[2]
    change = BlockChange(NORMS, surgery())
    shaken(change)
    with torch.inference_mode():
        before = model(images)
        model.block_changes["depth"] = BlockChanges({2: change})
        after = model(images)
        # The same by hand: a copy of the encoder with the norms written into it, and the correction behind the block.
        slow = copy.deepcopy(model.encoder)
        for name in NORMS:
            slow.vit.get_submodule(f"blocks.2.{name}").load_state_dict(change.norm(name).state_dict())
        correction = change.behind.taps[0]  # type: ignore[union-attr]
        slow.vit.get_submodule("blocks.2").register_forward_hook(
            lambda _, args, z: z - correction.up(torch.relu(correction.down(z)))  # type: ignore[operator,union-attr]
        )
        expected = SingleTaskModel(slow, model.decoders["depth"], DEPTH)(images)  # type: ignore[arg-type]
    torch.testing.assert_close(after["depth"], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after["depth"], before["depth"])
    for other in ("segmentation", "normals"):
        assert torch.equal(after[other], before[other])
    assert block is used_blocks(model.encoder)[2]
    with torch.inference_mode():  # the block has its own norms again
        assert torch.equal(model.encoder(images).maps[1], model.taps(images, ["normals"])["normals"].maps[1])


@pytest.mark.parametrize(
    ("firsts", "runs", "passes"),
    [
        ((0, 0, 0), (3, 3, 3, 3), 3),
        ((2, 2, 2), (1, 1, 3, 3), 2),
        ((3, 3, 3), (1, 1, 1, 3), 1.5),
        ((1, 3, None), (1, 2, 2, 3), 2),
        ((None, None, 3), (1, 1, 1, 2), 1.25),
        ((None, None, None), (1, 1, 1, 1), 1),
    ],
)
def test_blocks_before_the_first_change_are_run_once_for_all_tasks(
    model: MultiTaskModel, firsts: tuple[int | None, ...], runs: tuple[int, ...], passes: float
) -> None:
    for task, first in zip(TASKS, firsts, strict=True):
        if first is not None:
            model.block_changes[task] = BlockChanges({first: BlockChange(behind=surgery())})
    found = calls(model)
    with torch.inference_mode():
        model(torch.rand(2, 3, *SIZE))
    assert found == {-1: 1, **dict(enumerate(runs))}
    assert model.encoder_passes == passes == branching_passes([4 if f is None else f for f in firsts], 4)
    assert isinstance(model.encoder_passes, int) == (passes == int(passes))


def test_one_task_alone_costs_one_pass_and_predicts_as_among_all(model: MultiTaskModel) -> None:
    for task in TASKS:
        model.block_changes[task] = BlockChanges({1: shaken(BlockChange(NORMS))})  # type: ignore[dict-item]
    images = torch.rand(1, 3, *SIZE)
    with torch.inference_mode():
        every = model(images, ["normals", "depth"])
        found = calls(model)
        alone = model(images, ["depth"])
    assert set(found.values()) == {1}
    assert list(every) == ["normals", "depth"]
    assert torch.equal(every["depth"], alone["depth"])


def test_blocks_behind_the_last_tap_are_not_run_and_do_not_count(model: MultiTaskModel) -> None:
    encoder = Encoder(model.encoder.vit, model.encoder.name, (0, 1))
    decoders: dict[str, Any] = dict(model.decoders.items())
    changed = MultiTaskModel(encoder, decoders, TASKS, block_changes={"depth": BlockChanges({1: BlockChange(NORMS)})})
    found = calls(changed)
    with torch.inference_mode():
        changed(torch.rand(1, 3, *SIZE))
    assert (found[2], found[3]) == (0, 0)
    assert changed.encoder_passes == 1.5


def test_the_encoder_of_a_task_gives_its_taps_and_shares_the_weights(model: MultiTaskModel) -> None:
    model.block_changes["depth"] = BlockChanges({1: shaken(BlockChange(NORMS))})  # type: ignore[dict-item]
    images = torch.rand(2, 3, 30, 45)
    with torch.inference_mode():
        wanted, view = model.taps(images, ["depth"])["depth"], model.encoder_of("depth")
        found = view(images)
    assert all(torch.equal(a, b) for a, b in zip(found.maps, wanted.maps, strict=True))
    assert view.vit is model.encoder.vit
    assert model.encoder_of("normals") is model.encoder


def test_weights_are_held_once_and_gradients_reach_the_changes(model: MultiTaskModel) -> None:
    before = sum(p.numel() for p in model.parameters())
    for task in TASKS:
        model.block_changes[task] = BlockChanges({0: BlockChange(NORMS), 3: BlockChange(NORMS)})
    assert sum(p.numel() for p in model.parameters()) - before == 3 * 2 * 4 * 48
    model(torch.rand(1, 3, *SIZE))["depth"].sum().backward()
    changes = model.changes("depth")
    assert changes is not None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in changes.parameters())
    assert all(p.grad is None for p in model.changes("normals").parameters())  # type: ignore[union-attr]


def test_embedding_leaves_the_encoder_alone(model: MultiTaskModel) -> None:
    model.block_changes["depth"] = BlockChanges({1: BlockChange(NORMS)})
    before, blocks = state_of(model), model.encoder.vit.get_submodule("blocks")
    with torch.inference_mode():
        model(torch.rand(1, 3, *SIZE))
    assert (state_of(model), model.encoder.vit.get_submodule("blocks")) == (before, blocks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": {0: NORMS}}, r"block changes for unknown tasks \['edges'\]; the tasks are"),
        ({"depth": {4: NORMS}}, "depth changes block 4, but the last tap reads block 3; change blocks 0 to 3"),
        ({"depth": {-1: NORMS}}, r"of one block or more, counted from 0; got \[-1\]"),
        ({"depth": {}}, r"of one block or more, counted from 0; got \[\]"),
    ],
)
def test_changes_that_fit_no_task_or_block_are_refused(
    model: MultiTaskModel, changes: dict[str, dict[int, dict[str, int]]], message: str
) -> None:
    decoders: dict[str, Any] = dict(model.decoders.items())
    with pytest.raises(SimoError, match=message):
        MultiTaskModel(
            model.encoder,
            decoders,
            TASKS,
            block_changes={t: BlockChanges({i: BlockChange(n) for i, n in c.items()}) for t, c in changes.items()},
        )


def test_changes_of_a_shared_encoder_and_an_encoder_for_every_task_exclude_each_other(model: MultiTaskModel) -> None:
    decoders: dict[str, Any] = dict(model.decoders.items())
    own = dict.fromkeys(TASKS, model.encoder)
    with pytest.raises(SimoError, match="every task has an encoder of its own"):
        MultiTaskModel(
            model.encoder,
            decoders,
            TASKS,
            task_encoders=own,
            block_changes={"depth": BlockChanges({0: BlockChange(NORMS)})},
        )
