"""All measures through the one door: known cases, what is refused, and that nothing changes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from simo_merge import SimoError
from simo_merge.affinity import MEASURES, AffinityOptions, affinity, lambda_sweep, seen
from simo_merge.data import DenseDataset
from simo_merge.merging import TallMasks, TaskArithmetic, WeightAverage, merge
from simo_merge.models import SingleTaskModel
from simo_merge.realign import CalibrationFeatures, LinearSurgery, capture, tap_distances
from simo_merge.realign.realign import realign
from simo_merge.weights import Base
from tests.tiny import DEPTH, NORMALS, SEGMENTATION, TinyData, regression, state_of, tiny_base, tiny_expert

TASKS = (SEGMENTATION, DEPTH, NORMALS)
OPTIONS = AffinityOptions(rank=3, lambdas=(0.0, 0.5, 1.0), gradient_batches=2, batch_size=3)
NORMALISED = (
    "task-vector-cosine",
    "sign-agreement",
    "energy-overlap",
    "norm-ratio",
    "subspace-left",
    "subspace-right",
    "cka",
    "rsa-images",
    "rsa-tokens",
    "explained-variance",
    "explained-by-average",
    "cross-agreement",
    "merged-features",
    "realigned-features",
)


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


@pytest.fixture(scope="module")
def experts(base: Base) -> list[SingleTaskModel]:
    return [tiny_expert(task, base, seed) for seed, task in enumerate(TASKS, start=1)]


def test_without_names_all_measures_are_taken_that_the_arguments_serve(
    base: Base, experts: list[SingleTaskModel]
) -> None:
    images, labelled = TinyData(7), TinyData(5, TASKS, seed=1)
    before = state_of(base.vit, *experts)
    found = affinity(experts, base, images, labelled, options=OPTIONS)
    assert list(found) == list(MEASURES)
    for name, matrix in found.items():
        assert matrix.tasks == ("segmentation", "depth", "normals")
        assert matrix.symmetric == MEASURES[name].symmetric
        assert matrix.images == {"weights": 0, "images": 7, "labels": 5}[matrix.needs]
        assert matrix.labels == (5 if matrix.needs == "labels" else 0)
        assert torch.isfinite(matrix.values).all(), name
    assert state_of(base.vit, *experts) == before
    assert list(affinity(experts, base)) == [name for name, m in MEASURES.items() if m.needs == "weights"]


def test_equal_experts_give_one_by_every_normalised_measure(base: Base) -> None:
    one = tiny_expert(regression("edges"), base, 1)
    twin = SingleTaskModel(copy.deepcopy(one.encoder), copy.deepcopy(one.decoder), regression("shading"), one.base)
    found = affinity([one, twin.eval()], base, TinyData(6), options=OPTIONS)
    for name in NORMALISED:
        for values in (found[name].values, *found[name].profile.values()):
            assert values == pytest.approx(1.0, abs=2e-4), name
    assert {name for name, m in MEASURES.items() if m.needs != "labels"} - {*NORMALISED} == {"tsv-interference"}
    assert found["tsv-interference"].of("edges", "shading") == pytest.approx(-1, abs=1e-3)


def test_features_part_at_the_block_where_experts_do(base: Base, experts: list[SingleTaskModel]) -> None:
    one, other = experts[0], tiny_expert(DEPTH, base, 5)
    state = copy.deepcopy(one.encoder.vit.state_dict())
    for name, value in state.items():
        if name.startswith("blocks.2.mlp"):
            start = base.vit.state_dict()[name]
            value.copy_(2 * start - value)  # the task vector turned round
    other.encoder.vit.load_state_dict(state)
    found = affinity([one, other], base, TinyData(6), options=OPTIONS)
    for name in ("cka", "explained-variance", "merged-features"):
        at = {layer: float(values[0, 1]) for layer, values in found[name].profile.items()}
        assert at["block 1"] == pytest.approx(1, abs=1e-6)
        assert at["block 3"] < 0.9999, name
    cosines = found["task-vector-cosine"].layers
    assert min(cosines, key=lambda layer: float(cosines[layer][0, 1])) == "block 2"
    assert min(found["sign-agreement"].modules.items(), key=lambda item: float(item[1][0, 1]))[0].startswith("mlp")


def test_a_merged_pair_is_merged_run_and_re_aligned_with_what_was_held_out(
    base: Base, experts: list[SingleTaskModel]
) -> None:
    images = TinyData(6)
    options = replace(OPTIONS, merge=TaskArithmetic(0.4), folds=2, surgery_rank=5, ridge=0.1, pair_images=None)
    found = affinity(experts, base, images, measures=("merged-features", "realigned-features"), options=options)
    pair = experts[0], experts[2]
    merged = merge(pair, TaskArithmetic(0.4), base)
    features = CalibrationFeatures(
        capture(merged.encoder, images), {e.task.name: capture(e.encoder, images) for e in pair}
    )
    target = features.experts["normals"]
    error, unaligned, spread = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    for half in (slice(0, 3), slice(3, 6)):
        rest = slice(3, 6) if half.start == 0 else slice(0, 3)
        fitted = realign(
            merged, pair, _Some(images, rest), LinearSurgery(5, 0.1, stretch="none"), features.subset(rest)
        )
        aligner = fitted.aligner("normals")
        assert aligner is not None
        held = features.merged.subset(half)
        aligned, prefix = aligner.tokens(list(held.patches), list(held.prefix), held.grid)
        for tap in range(2):
            patches, class_token = target.patches[tap], target.prefix[tap]
            scale = patches.flatten(0, 1).std(0, correction=0)
            scale = scale.clamp_min(0.1 * scale.median())
            mass = 6.0  # a class token counts as much as the patches of its image

            def squares(one: torch.Tensor, other: torch.Tensor, scale: torch.Tensor = scale) -> torch.Tensor:
                return ((one - other) / scale).square().sum().detach()

            error[tap] += squares(aligned[tap], patches[half]) + mass * squares(prefix[tap], class_token[half])
            unaligned[tap] += squares(held.patches[tap], patches[half])
            unaligned[tap] += mass * squares(held.prefix[tap], class_token[half])
            spread[tap] += squares(patches.mean((0, 1)), patches[half])
            spread[tap] += mass * squares(class_token.mean(0), class_token[half])
    after, before = found["realigned-features"], found["merged-features"]
    assert after.of("segmentation", "normals") == pytest.approx(float((1 - error / spread).mean()), abs=2e-3)
    assert before.of("segmentation", "normals") == pytest.approx(float((1 - unaligned / spread).mean()), abs=2e-3)
    distance = tap_distances(features.merged, target, merged.encoder.taps)[0]
    assert distance.explained_variance < 1  # the merge does differ from the expert


def test_pairs_may_see_fewer_images_than_experts_do(base: Base, experts: list[SingleTaskModel]) -> None:
    names = ("cka", "merged-features")
    found = affinity(experts[:2], base, TinyData(7), measures=names, options=replace(OPTIONS, pair_images=3))
    assert (found["cka"].images, found["merged-features"].images) == (7, 3)
    few = affinity(experts[:2], base, _Some(TinyData(7), slice(0, 7, 3)), measures=names, options=OPTIONS)
    assert torch.allclose(found["merged-features"].values, few["merged-features"].values, atol=1e-4)


def test_decoders_may_be_asked_about_fewer_images_whatever_is_in_memory_at_a_time(
    base: Base, experts: list[SingleTaskModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, options = "cross-agreement", replace(OPTIONS, decoded_images=3)
    few = affinity(experts, base, _Some(TinyData(7), slice(0, 7, 3)), measures=(name,), options=OPTIONS)[name]
    monkeypatch.setattr(seen, "CHUNK", 2)
    found = affinity(experts, base, TinyData(7), measures=(name,), options=options)[name]
    assert found.images == 3
    assert torch.allclose(found.values, few.values, atol=1e-4)


def test_the_same_arguments_give_the_same_numbers_whatever_else_is_asked_for(
    base: Base, experts: list[SingleTaskModel]
) -> None:
    whole = affinity(experts, base, TinyData(5), options=replace(OPTIONS, tokens=3))
    torch.rand(7)  # the global generator has no part in it
    for name in ("rsa-tokens", "explained-variance", "realigned-features", "cross-agreement"):
        alone = affinity(experts, base, TinyData(5), measures=(name,), options=replace(OPTIONS, tokens=3))
        assert torch.equal(alone[name].values, whole[name].values), name


def test_transfer_is_delta_of_a_decoder_on_another_encoder(base: Base, experts: list[SingleTaskModel]) -> None:
    labelled = TinyData(4, TASKS, seed=1)
    found = affinity(experts, base, labelled=labelled, measures=("transfer",))["transfer"]
    sweep = lambda_sweep(experts, base, labelled, (1.0,))
    assert torch.equal(found.values, sweep.delta[:, 0])
    assert found.values.diagonal().tolist() == [0, 0, 0]


def test_a_sweep_that_was_made_before_is_not_made_again(base: Base, experts: list[SingleTaskModel]) -> None:
    labelled = TinyData(2, TASKS, seed=1)
    sweep = lambda_sweep(experts, base, labelled, (0.5,))
    known = replace(sweep, metrics=sweep.metrics * 0)  # not what would be measured
    found = affinity(experts, base, labelled=labelled, measures=("lambda-sweep",), sweep=known)
    assert (
        torch.equal(
            found["lambda-sweep"].values,
            known.best_gain(),
        )
        or known.best_gain().isnan().any()
    )
    with pytest.raises(SimoError, match="the sweep given is of segmentation, depth, normals"):
        affinity(experts[::-1], base, labelled=labelled, sweep=known)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures": ("ckaa",)}, r"unknown affinity measure\(s\) ckaa; known: .*did you mean cka"),
        ({"measures": ()}, "no affinity measure was asked for"),
        ({"measures": ("cka",), "images": None}, r"cka: needs images; give them \(images="),
        ({"images": TinyData(1)}, r"held out, and 1 was given; give two or more"),
        ({"measures": ("transfer",)}, r"transfer: needs labels; give them \(labelled="),
        ({"labelled": TinyData(2, TASKS, split="test")}, "does not look at the labels of tiny"),
        ({"labelled": TinyData(2, (regression("edges"),))}, "has labels for edges"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    base: Base, experts: list[SingleTaskModel], changes: dict[str, object], message: str
) -> None:
    given: dict[str, object] = {"images": TinyData(2), **changes}
    with pytest.raises(SimoError, match=message):
        affinity(experts, base, **given)  # type: ignore[arg-type]


def test_experts_that_do_not_belong_together_are_refused(base: Base, experts: list[SingleTaskModel]) -> None:
    with pytest.raises(SimoError, match="at least two experts"):
        affinity(experts[:1], base)
    with pytest.raises(SimoError, match="but the expert for segmentation came from"):
        affinity(experts, tiny_base(seed=9))


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 0},
        {"tokens": 0},
        {"folds": 1},
        {"pair_images": 1},
        {"decoded_images": 0},
        {"ridge": 0.0},
        {"step": float("inf")},
        {"merge": TallMasks()},
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SimoError, match="affinity: "):
        replace(AffinityOptions(merge=WeightAverage()), **changes)


class _Some:
    """Some images of a data set."""

    def __init__(self, whole: DenseDataset, run: slice) -> None:
        self.name, self.split, self.tasks = whole.name, whole.split, {}
        self.keys = whole.keys[run]
        self._samples = [whole[i] for i in range(len(whole))][run]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> object:
        return self._samples[index]
