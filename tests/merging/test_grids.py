"""Experts of other image sizes than the base's: refused with an offer, resampled as timm does where that is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from simo_merge.checkpoints import load, load_expert, save
from simo_merge.errors import SimoError
from simo_merge.merging import RegMean, TaskArithmetic, WeightAverage, merge, merge_states
from simo_merge.merging.files import merge_files
from simo_merge.merging.files.merge_checkpoints import merge_checkpoints
from simo_merge.models import SingleTaskModel
from simo_merge.selection import Agreement, select
from simo_merge.tasks import Task
from simo_merge.weights import Base, fingerprint, load_base
from simo_merge.weights.architecture import build_vit
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData, tiny_base, tiny_expert

State = dict[str, Tensor]
NATIVE = (64, 64)  # 4 x 4 patches of 16 pixels
WIDE, TALL = (32, 48), (48, 32)  # 2 x 3 and 3 x 2: as many


def patches(size: tuple[int, int], patch: int = 16) -> list[int]:
    return [size[0] // patch, size[1] // patch]


def at(base: Base, size: tuple[int, int], old: tuple[int, int] = NATIVE) -> Base:
    """The base for another image size, as `load_base` makes it of the same file."""
    made = tiny_base(image_size=size)
    state = base.vit.state_dict()
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], patches(size), patches(old), num_prefix_tokens=1)
    made.vit.load_state_dict(state)
    return replace(base, vit=made.vit, sha256=fingerprint(state))


def expert_at(base: Base, size: tuple[int, int], task: Task, seed: int) -> SingleTaskModel:
    return tiny_expert(task, base if size == NATIVE else at(base, size), seed)


def resampled(expert: SingleTaskModel, size: tuple[int, int]) -> dict[str, Tensor]:
    """The state of an expert's ViT at another grid, by timm alone."""
    state = expert.encoder.vit.state_dict()
    old, new = patches(expert.encoder.grid_size), patches(size)
    return state | {"pos_embed": resample_abs_pos_embed(state["pos_embed"], new, old, num_prefix_tokens=1)}


@pytest.fixture
def base() -> Base:
    return tiny_base(image_size=NATIVE)


@pytest.fixture
def experts(base: Base) -> list[SingleTaskModel]:
    sizes = (WIDE, NATIVE, TALL)
    pairs = zip(sizes, (SEGMENTATION, DEPTH, NORMALS), strict=True)
    return [expert_at(base, size, task, seed) for seed, (size, task) in enumerate(pairs)]


# -- models -----------------------------------------------------------------------------------------------------


def test_experts_of_other_grids_merge_on_the_grid_of_the_base(base: Base, experts: list[SingleTaskModel]) -> None:
    merged = merge(experts, TaskArithmetic(0.4), base, resample_pos_embed=True)
    states = [resampled(expert, NATIVE) for expert in experts]
    expected = merge_states(base.vit.state_dict(), states, TaskArithmetic(0.4)).shared
    assert fingerprint(merged.encoder.vit.state_dict()) == fingerprint(expected)
    assert merged.encoder.grid_size == NATIVE


@pytest.mark.parametrize("size", [WIDE, TALL, NATIVE, (80, 48)])
def test_the_merged_model_predicts_for_images_of_any_size(
    base: Base, experts: list[SingleTaskModel], size: tuple[int, int]
) -> None:
    merged = merge(experts, TaskArithmetic(0.3), base, resample_pos_embed=True)
    with torch.inference_mode():
        predictions = merged(torch.rand(2, 3, *size))
    assert {name: tuple(p.shape) for name, p in predictions.items()} == {
        "segmentation": (2, 3, *size),
        "depth": (2, 1, *size),
        "normals": (2, 3, *size),
    }
    assert all(bool(p.isfinite().all()) for p in predictions.values())


def test_the_record_is_of_the_experts_as_they_were(base: Base, experts: list[SingleTaskModel]) -> None:
    before = [fingerprint(expert.state_dict()) for expert in experts]
    merged = merge(experts, WeightAverage(), base, resample_pos_embed=True)
    assert merged.merge is not None
    assert [entry["sha256"] for entry in merged.merge.experts.values()] == before
    assert [fingerprint(expert.state_dict()) for expert in experts] == before
    assert [expert.encoder.grid_size for expert in experts] == [WIDE, NATIVE, TALL]


def test_where_nothing_differs_the_option_changes_nothing(base: Base) -> None:
    experts = [expert_at(base, WIDE, task, seed) for seed, task in enumerate((DEPTH, NORMALS))]
    plain = merge(experts, TaskArithmetic(0.3), at(base, WIDE))
    asked = merge(experts, TaskArithmetic(0.3), at(base, WIDE), resample_pos_embed=True)
    assert fingerprint(plain.state_dict()) == fingerprint(asked.state_dict())


def test_methods_that_look_at_images_and_searches_take_such_experts(base: Base, experts: list[SingleTaskModel]) -> None:
    merged = merge(experts, RegMean(), base, TinyData(3), resample_pos_embed=True)
    assert all(bool(parameter.isfinite().all()) for parameter in merged.parameters())
    criterion = Agreement(TinyData(3))
    found = select(
        experts, TaskArithmetic(), {"scale": (0.1, 0.3)}, criterion, base, device="cpu", resample_pos_embed=True
    )
    assert len(found.candidates) == 2


def offered(experts: Sequence[SingleTaskModel], base: Base) -> str:
    with pytest.raises(SimoError) as refusal:
        merge(experts, WeightAverage(), base)
    said = str(refusal.value)
    assert "--resample-pos-embed" in said
    assert "resample_pos_embed=True" in said
    return said


def test_experts_of_different_grids_are_refused_with_their_sizes_and_the_option(
    base: Base, experts: list[SingleTaskModel]
) -> None:
    said = offered(experts[:2], base)
    assert "the expert for segmentation has position embeddings for images of 32x48, that for depth for 64x64" in said


def test_grids_of_as_many_positions_are_told_apart(base: Base, experts: list[SingleTaskModel]) -> None:
    assert "32x48" in (said := offered([experts[0], experts[2]], at(base, WIDE)))
    assert "48x32" in said


def test_a_base_of_another_grid_is_refused_with_the_option(base: Base) -> None:
    experts = [expert_at(base, WIDE, task, seed) for seed, task in enumerate((DEPTH, NORMALS))]
    assert "the expert for depth" in offered(experts, base)


# -- the base that experts of other grids came from -------------------------------------------------------------


def test_an_expert_of_another_grid_and_another_base_is_refused(base: Base, experts: list[SingleTaskModel]) -> None:
    stranger = expert_at(tiny_base(seed=5, image_size=NATIVE), WIDE, NORMALS, 3)
    with pytest.raises(SimoError, match=r"expert for normals came from .* 32x48, which the base given .* does not"):
        merge([experts[1], stranger], WeightAverage(), base, resample_pos_embed=True)


def test_a_base_that_was_resampled_itself_is_known_by_its_source(
    base: Base, experts: list[SingleTaskModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def loaded(name: str, source: str, size: tuple[int, int]) -> Base:
        asked.append((name, source, size))
        return base if size == NATIVE else at(base, size)

    monkeypatch.setattr("simo_merge.merging.grids.load_base", loaded)
    wide = at(base, WIDE)
    merged = merge([experts[0], experts[2]], WeightAverage(), wide, resample_pos_embed=True)
    assert merged.encoder.grid_size == WIDE
    assert asked == [(base.name, "timm", TALL)]
    with torch.no_grad():
        next(wide.vit.parameters()).add_(1.0)
    wide = replace(wide, sha256=fingerprint(wide.vit.state_dict()))
    with pytest.raises(SimoError, match="give the base that the experts were fine-tuned from"):
        merge([experts[2], tiny_expert(DEPTH, wide, 1)], WeightAverage(), wide, resample_pos_embed=True)


def test_experts_that_record_no_base_are_resampled_to_the_one_that_is_given(
    base: Base, experts: list[SingleTaskModel]
) -> None:
    for expert in experts:
        expert.base = None
    assert merge(experts, WeightAverage(), base, resample_pos_embed=True).encoder.grid_size == NATIVE


# -- checkpoints ------------------------------------------------------------------------------------------------


def resized_checkpoint(folder: Path, task: Task, size: tuple[int, int], seed: int) -> Path:
    """An expert of `test_vit` for another image size, which records no base."""
    expert = tiny_expert(task, load_base("test_vit", "random"), seed, taps=(1, 3))
    old = expert.encoder.grid_size
    if size != old:
        patch = expert.encoder.patch_size[0]
        state = expert.encoder.vit.state_dict()
        state["pos_embed"] = resample_abs_pos_embed(
            state["pos_embed"], patches(size, patch), patches(old, patch), num_prefix_tokens=1
        )
        expert.encoder.vit = build_vit("test_vit", size)
        expert.encoder.vit.load_state_dict(state)
    expert.base = None
    return save(expert, folder / task.name)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [resized_checkpoint(tmp_path, DEPTH, (64, 96), 1), resized_checkpoint(tmp_path, NORMALS, (160, 160), 2)]


def test_checkpoints_of_other_grids_merge_as_in_memory(paths: list[Path], tmp_path: Path) -> None:
    base = load_base("test_vit", "random")
    models = [load_expert(path) for path in paths]
    save(merge(models, TaskArithmetic(0.4), base, resample_pos_embed=True), tmp_path / "memory")
    merge_checkpoints(paths, TaskArithmetic(0.4), tmp_path / "streamed", base, resample_pos_embed=True)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "memory" / file).read_bytes() == (tmp_path / "streamed" / file).read_bytes()
    assert load(tmp_path / "streamed").encoder.grid_size == (160, 160)


def test_files_know_the_grids_that_checkpoints_record(paths: list[Path], tmp_path: Path) -> None:
    base = load_base("test_vit", "random")
    save_file(base.vit.state_dict(), tmp_path / "base.safetensors")
    out = merge_files(
        tmp_path / "base.safetensors", paths, TaskArithmetic(0.4), tmp_path / "out.safetensors", resample_pos_embed=True
    )
    models = [load_expert(path) for path in paths]
    expected = merge(models, TaskArithmetic(0.4), base, resample_pos_embed=True).encoder.vit.state_dict()
    assert fingerprint(load_file(out)) == fingerprint(expected)


# -- plain files ------------------------------------------------------------------------------------------------


def table(state: dict[str, Tensor], sides: tuple[int, int], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return state | {"pos_embed": torch.randn(1, 1 + sides[0] * sides[1], 48, generator=generator)}


def test_plain_files_take_the_grids_that_are_given_and_else_squares(tmp_path: Path) -> None:
    def merged_states(base: State, experts: list[State], grids: list[tuple[int, int]]) -> Tensor:
        output = tmp_path / "out.safetensors"
        return load_file(
            merge_files(
                base, experts, WeightAverage(), output, resample_pos_embed=True, pos_embed_grids=grids, overwrite=True
            )
        )["pos_embed"]

    plain = tiny_base().vit.state_dict()
    base, seg, depth = table(plain, (2, 3), 0), table(plain, (4, 9), 1), table(plain, (6, 6), 2)
    merged = merged_states(base, [seg, depth], [(2, 3)])  # 36 positions: a square
    expected = resample_abs_pos_embed(seg["pos_embed"], [2, 3], [6, 6], num_prefix_tokens=1)
    expected = (expected + resample_abs_pos_embed(depth["pos_embed"], [2, 3], [6, 6], num_prefix_tokens=1)) / 2
    assert torch.allclose(merged, expected, atol=1e-6)
    merged = merged_states(base, [seg, table(plain, (2, 3), 3)], [(2, 3), (4, 9)])
    expected = resample_abs_pos_embed(seg["pos_embed"], [2, 3], [4, 9], num_prefix_tokens=1)
    assert torch.allclose(merged, (expected + table(plain, (2, 3), 3)["pos_embed"]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("grids", "said"),
    [
        ([], r"expert 1 has pos_embed of shape \(1, 13, 48\), which is not a square beside 1 prefix tokens; .*9x12"),
        ([(2, 5)], "which is not 2x5 or a square beside"),
    ],
)
def test_a_grid_that_nothing_tells_is_asked_for(grids: list[tuple[int, int]], said: str, tmp_path: Path) -> None:
    plain = tiny_base().vit.state_dict()
    base, experts = table(plain, (2, 2), 0), [table(plain, (3, 4), 1), table(plain, (2, 2), 2)]
    with pytest.raises(SimoError, match=said):
        merge_files(
            base, experts, WeightAverage(), tmp_path / "o.safetensors", resample_pos_embed=True, pos_embed_grids=grids
        )


def test_other_prefix_tokens_are_no_other_grid(tmp_path: Path) -> None:
    plain = tiny_base().vit.state_dict()
    base, bare = table(plain, (2, 2), 0), table(plain, (3, 3), 1)
    bare["pos_embed"] = bare["pos_embed"][:, 1:]  # positions of patches alone
    with pytest.raises(SimoError, match="has positions of 0 prefix tokens, the base of 1"):
        merge_files(base, [bare, base], WeightAverage(), tmp_path / "o.safetensors", resample_pos_embed=True)


def test_grids_are_for_resampling(tmp_path: Path) -> None:
    plain = tiny_base().vit.state_dict()
    with pytest.raises(SimoError, match="add --resample-pos-embed"):
        merge_files(plain, [plain, plain], WeightAverage(), tmp_path / "o.safetensors", pos_embed_grids=[(2, 3)])


def test_checkpoints_of_turned_grids_are_refused_with_the_option(tmp_path: Path) -> None:
    paths = [resized_checkpoint(tmp_path, task, size, 1) for task, size in ((DEPTH, (64, 96)), (NORMALS, (96, 64)))]
    with pytest.raises(SimoError, match=r"has position embeddings of 6x4 patches, .* of 4x6; .*--resample-pos-embed"):
        merge_files(paths[0], paths, WeightAverage(), tmp_path / "o.safetensors")
