"""MAGIC: task arithmetic whose steps are as long as the experts', layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from simo_merge.merging.elementwise.linear import TaskArithmetic
from simo_merge.merging.from_images.layer_inputs import on_device, run
from simo_merge.merging.from_images.sensitive import module_sensitivity
from simo_merge.merging.method import DataMergeMethod, MergeData, MergeMethod
from simo_merge.merging.options import finite, one_of, texts, whole
from simo_merge.merging.parameter import Parameter
from simo_merge.models import Encoder

Surface = Literal["sphere", "ellipsoid"]
SensitiveSearch = Literal["none", "features", "labels"]


@dataclass(frozen=True)
class MagicWeights(MergeMethod):
    """MAGIC in weight space (WSC): every row of a merged matrix is as long as the experts' rows are on average.

    For each matrix (m, n) and convolution kernel (m, ...), with d = scale * sum_t tau_t,

        merged[i] = theta_0[i] + xi[i] d[i],     xi[i] = mean_t ||tau_t[i]||_1 / ||d[i]||_1,

    so the scale of task arithmetic drops out there. Other parameters keep theta_0 + d, and a row of zeros stays.

    scale: of task arithmetic.
    surface: what d[i] is brought onto. "sphere" is the formula above. "ellipsoid" is what the authors' code does: with
        a_t = <d[i], tau_t[i]> / ||tau_t[i]||^2 and rest = d[i] - sum_t a_t tau_t[i],
        xi[i] = (sum_t a_t^2 + ||rest||^2 / (mean_t ||tau_t[i]||)^2)^(-1/2), in Euclidean norms. That is the ellipsoid
        whose axes are the tau_t where they are orthogonal; equal experts come back shorter from there.
    sensitive: names of modules, or parts of them between dots, that are only ever scaled down; all others are then only
        scaled up. Without any, both. The paper takes about 10; `Magic` finds such modules.

    Raises:
        SimoError: a scale that is not finite.

    Source: Li et al., arXiv 2512.19320, weight space calibration (WSC), and the authors' code.
    """

    name: ClassVar[str] = "magic-weights"
    scale: float = 0.3
    surface: Surface = "sphere"
    sensitive: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", finite(self.name, "scale", self.scale))
        one_of(self.name, "surface", self.surface, get_args(Surface))
        object.__setattr__(self, "sensitive", texts(self.sensitive))

    def merge(self, parameter: Parameter, statistics: Any = None) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        vectors = parameter.vectors
        moved = self.scale * vectors.sum(dim=0)
        if parameter.base.ndim in (2, 4):
            moved = moved * self._ratio(parameter.name, vectors, moved)
        return parameter.base + moved

    def _ratio(self, name: str, vectors: Tensor, moved: Tensor) -> Tensor:
        """xi, (m, 1, ...)."""
        surface = _ellipsoid if self.surface == "ellipsoid" else _sphere
        ratio = surface(vectors.flatten(2).double(), moved.flatten(1).double()).to(moved)  # (m,)
        if self.sensitive:
            down = named_by(name, self.sensitive)
            ratio = ratio.clamp_max(1.0) if down else ratio.clamp_min(1.0)
        return ratio.view(-1, *[1] * (moved.ndim - 1))


def named_by(name: str, parts: Iterable[str]) -> bool:
    """Whether a dotted name is one of these, or holds one between dots: `blocks.1` is no part of `blocks.11.norm1`."""
    return any(f".{part}." in f".{name}." for part in parts)


def _sphere(vectors: Tensor, moved: Tensor) -> Tensor:
    """tau (T, m, n), d (m, n) -> xi (m,); 1 where d is zero."""
    wanted = vectors.abs().sum(dim=2).mean(dim=0)
    return _divide(wanted, moved.abs().sum(dim=1), 1.0)


def _ellipsoid(vectors: Tensor, moved: Tensor) -> Tensor:
    """tau (T, m, n), d (m, n) -> xi (m,); 1 where d is zero."""
    squares = vectors.square().sum(dim=2)  # (T, m)
    along = _divide((vectors * moved).sum(dim=2), squares, 0.0)
    rest = moved - (along[..., None] * vectors).sum(dim=0)
    across = _divide(rest.square().sum(dim=1), squares.sqrt().mean(dim=0).square(), 0.0)
    return _divide(torch.ones_like(across), (along.square().sum(dim=0) + across).sqrt(), 1.0)


def _divide(numerator: Tensor, denominator: Tensor, otherwise: float) -> Tensor:
    """The quotient, and another value where it would be none."""
    defined = denominator > 0
    return torch.where(defined, numerator / torch.where(defined, denominator, 1.0), otherwise)


@dataclass(frozen=True)
class Ratios:
    """What MAGIC in feature space has measured: xi by module, and the modules that are never scaled up."""

    values: Mapping[str, float]
    sensitive: tuple[str, ...]


@dataclass(frozen=True)
class Magic(DataMergeMethod):
    """MAGIC in feature space (FSC): every module's features move as far from the base's as the experts' do.

    For each module that has parameters and no modules inside, and the inputs x that reach it in the merged encoder,

        xi = mean_t mean_x ||f_t(x) - f_0(x)||_1 / ||f_merged(x) - f_0(x)||_1,
        merged = theta_0 + xi d,     d = scale * sum_t tau_t,

    with f_0, f_t and f_merged the module with the weights of base, expert t and merge, and norms over channels. The
    modules of a ViT are affine in their own parameters, so to scale d is to scale f_merged - f_0, which the paper
    does in every forward pass. Parameters outside such modules (class token, position embedding) keep theta_0 + d.

    scale: of task arithmetic. It drops out, but for the features that ratios are measured on.
    dual: start from MAGIC in weight space (`MagicWeights`) instead of task arithmetic (DSC in the paper).
    sensitive: names of modules, or parts of them between dots, that are never scaled up.
    search: how further ones are found: those that hurt most (or help least) when their d is 1.1 times as long. The
        paper judges by the accuracy on labelled images. "labels" judges by the tasks' losses, "features" by agreement
        with the experts' features, without labels (ours); "none" looks for none. What is found is recorded.
    count: this many are found, about 10 in the paper.
    search_images: at most this many images are looked at, once for every module.

    Raises:
        SimoError: an option out of range; when it sees images, what `module_sensitivity` refuses.

    Source: Li et al., arXiv 2512.19320, feature space calibration (FSC), and the authors' code.
    """

    name: ClassVar[str] = "magic"
    scale: float = 0.3
    dual: bool = False
    sensitive: tuple[str, ...] = ()
    search: SensitiveSearch = "none"
    count: int = 10
    search_images: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", finite(self.name, "scale", self.scale))
        object.__setattr__(self, "sensitive", texts(self.sensitive))
        one_of(self.name, "search", self.search, get_args(SensitiveSearch))
        object.__setattr__(self, "count", whole(self.name, "count", self.count, least=1))
        object.__setattr__(self, "search_images", whole(self.name, "search_images", self.search_images, least=1))

    @property
    def needs_labels(self) -> bool:
        """With search="labels"."""
        return self.search == "labels"

    def observe(self, given: MergeData) -> Ratios:
        """xi of every module that images reach, by the module's name."""
        if self.search != "none":
            sensitive = (*self.sensitive, *self._found(given))
            return replace(self, sensitive=sensitive, search="none").observe(given)
        first = given.experts[0].encoder
        base = copy.deepcopy(first)
        base.vit.load_state_dict(given.base.vit.state_dict())
        experts = [on_device(expert.encoder, given.device) for expert in given.experts]
        merged = on_device(self._merged(base, [expert.encoder for expert in given.experts]), given.device)
        base = on_device(base, given.device)
        sums: dict[str, Tensor] = {}  # sum of ratios, number of tokens
        handles = []
        for name, module in merged.vit.named_modules():
            if _has_only_parameters(module):
                others = [other.vit.get_submodule(name) for other in (base, *experts)]
                handles.append(module.register_forward_hook(_measure(sums, name, others)))
        try:
            run(merged, given, "feature magnitudes")
        finally:
            for handle in handles:
                handle.remove()
        ratios = {name: self._factor(name, float(s), int(n)) for name, (s, n) in sums.items()}
        return Ratios(ratios, self.sensitive)

    def merge(self, parameter: Parameter, statistics: Ratios) -> Tensor:
        """theta_0 (...), theta_t (...) -> merged (...)."""
        module = parameter.name.rpartition(".")[0]
        plain = self._plain(statistics.sensitive).merge(parameter, None)
        return parameter.base + statistics.values.get(module, 1.0) * (plain - parameter.base)

    def record(self, statistics: Ratios) -> dict[str, Any]:
        """The options, with the sensitive modules that were found among those that were given."""
        return {**self.parameters(), "sensitive": list(statistics.sensitive)}

    def _found(self, given: MergeData) -> list[str]:
        """The modules that hurt most, worst first."""
        base = copy.deepcopy(given.experts[0].encoder)
        base.vit.load_state_dict(given.base.vit.state_dict())
        merged = on_device(self._merged(base, [expert.encoder for expert in given.experts]), given.device)
        names = [name for name, module in merged.vit.named_modules() if _has_only_parameters(module)]
        objective = "supervised" if self.search == "labels" else "features"
        origin = given.base.vit.state_dict()
        hurt = module_sensitivity(merged, origin, given, objective, self.search_images, names)
        return sorted(hurt, key=lambda name: -hurt[name])[: self.count]

    def _plain(self, sensitive: tuple[str, ...]) -> MergeMethod:
        return MagicWeights(self.scale, sensitive=sensitive) if self.dual else TaskArithmetic(self.scale)

    def _merged(self, base: Encoder, experts: list[Encoder]) -> Encoder:
        merged, method = copy.deepcopy(base), self._plain(self.sensitive)
        states = [expert.vit.state_dict() for expert in experts]
        with torch.no_grad():
            for name, value in merged.vit.named_parameters():
                value.copy_(method.merge(Parameter(name, value.detach().clone(), tuple(s[name] for s in states)), None))
        return merged

    def _factor(self, name: str, total: float, tokens: int) -> float:
        ratio = total / tokens if tokens else 1.0
        return min(ratio, 1.0) if named_by(name, self.sensitive) else ratio


def _has_only_parameters(module: nn.Module) -> bool:
    return not any(module.children()) and any(True for _ in module.parameters())


def _measure(sums: dict[str, Tensor], name: str, others: list[nn.Module]) -> Callable[[nn.Module, Any, Any], None]:
    base, *experts = others

    def record(module: nn.Module, args: Any, output: Tensor) -> None:
        channels = 1 if isinstance(module, nn.Conv2d) else -1
        origin = base(*args)
        moved = _length(output - origin, channels)
        wanted = torch.stack([_length(expert(*args) - origin, channels) for expert in experts]).mean(dim=0)
        ratio = _divide(wanted, moved, 0.0)
        found = torch.stack([ratio.sum(), (moved > 0).sum().double()])
        sums[name] = sums[name] + found if name in sums else found

    return record


def _length(features: Tensor, channels: int) -> Tensor:
    return features.double().abs().sum(dim=channels)
