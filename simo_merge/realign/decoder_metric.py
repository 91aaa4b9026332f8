"""What a frozen decoder reads: the Gauss-Newton metric of its prediction on each tap's channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from simo_merge.errors import SimoError
from simo_merge.models import MultiTaskModel, Taps
from simo_merge.progress import progress
from simo_merge.realign.channels import channel_means
from simo_merge.realign.features import CalibrationFeatures, Features, refuse_share
from simo_merge.realign.folds import fold_bounds
from simo_merge.realign.held_out import output_scale
from simo_merge.realign.moments import TapMoments, summing_device
from simo_merge.realign.output_metric import OutputMetric, measured
from simo_merge.realign.realignment import Calibration
from simo_merge.tasks import Segmentation, Task

_BATCH = 8  # images


class ReadsDecoder:
    """Options of a closed form that may weigh errors by what the frozen decoder reads.

    objective: "features", every channel alike in units of the expert's deviation; or "decoder", by the Gauss-Newton
    metric of the decoder's prediction (`decoder_metrics`), which decides the directions that a rank keeps and what
    held-out candidates are judged by.
    floor: the share of the plain objective in that metric, in (0, 1].
    """

    objective: Literal["features", "decoder"]
    floor: float

    def check_objective(self) -> None:
        """Refuse an unknown objective and a floor out of range.

        Raises:
            SimoError: either of them.
        """
        if self.objective not in ("features", "decoder"):
            raise SimoError(f"the objective of a closed form is 'features' or 'decoder', got {self.objective!r}")
        if not 0 < self.floor <= 1:
            raise SimoError(f"floor is the share of the plain objective, above 0 and at most 1; got {self.floor}")

    def metrics(
        self, model: MultiTaskModel, given: Calibration, taps: Sequence[TapMoments]
    ) -> dict[tuple[str, int], OutputMetric]:
        """The metric of every task and tap, where the objective has one; taps: the moments of each tap alone."""
        if self.objective == "features":
            return {}
        scales = {(task, index): output_scale(tap, task) for task in model.tasks for index, tap in enumerate(taps)}
        found = decoder_metrics(model, given.features, scales, given.device, floor=self.floor, seed=given.seed)
        return {cell: metric.to(scales[cell]) for cell, metric in found.items()}


def random_direction(task: Task, prediction: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction v of a prediction with E[v v'] = H, what errors of the prediction cost, for each pixel.

    Segmentation: H = diag(p) - p p', the Fisher information of the class probabilities p = softmax(prediction):
    v = sqrt(p) s - p (sqrt(p)' s) with random signs s. Normals: H = I; their prediction has unit length, and for
    small differences 1 - cosine is half the squared distance. Every other task: H = I; L1 has no curvature of its own,
    and the squared distance stands in for it.

    Args:
        task: whose prediction it is.
        prediction: activated, (B, K, H, W).
        generator: of the signs, on the CPU.

    Source: random signs: Hutchinson 1990. Gauss-Newton and Fisher of the softmax: Martens, arXiv 1412.1193, section 9.
    """
    signs = torch.randint(0, 2, prediction.shape, generator=generator).to(prediction).mul_(2).sub_(1)
    if not isinstance(task, Segmentation):
        return signs
    probabilities = prediction.detach().softmax(dim=1)
    roots = probabilities.sqrt()
    return roots * signs - probabilities * (roots * signs).sum(dim=1, keepdim=True)


def reading(
    model: MultiTaskModel,
    task: str,
    expert: Features,
    scales: Sequence[Tensor],
    images: int,
    probes: int,
    seed: int,
    device: torch.device,
) -> list[Tensor]:
    """For each tap sum_n S E[g_n g_n'] S (C, C), float64, a mean over images: g_n = J_n' v at the token n.

    J_n is the Jacobian of the prediction with respect to the tap's token n, at the expert's features, and v a
    `random_direction`, so that E[g_n g_n'] = J_n' H J_n, the Gauss-Newton matrix; what errors in several tokens or taps
    make together is left out. The sum runs over the patches and the prefix tokens.

    Args:
        scales: S, for each tap the scale of its channels, (C,).
        images: how many are looked at, evenly spaced among those given.
        probes: directions for each of them.
    """
    device = summing_device(device)
    decoder = model.decoders[task].to(device).eval()
    count = min(images, len(expert))
    chosen = torch.arange(count) * len(expert) // count
    generator = torch.Generator().manual_seed(seed)
    found = [torch.zeros(len(s), len(s), dtype=torch.float64, device=device) for s in scales]
    chunks = torch.split(chosen, _BATCH)
    for chunk in progress(chunks, len(chunks), f"what the decoder reads: {task}"):
        taps = expert.taps(chunk)
        maps = tuple(m.to(device).requires_grad_() for m in taps.maps)
        prefix = tuple(p.to(device).requires_grad_() for p in taps.prefix)
        prediction = model.decode(Taps(maps, prefix), task, expert.image_size)
        for probe in range(probes):
            gradients = torch.autograd.grad(
                prediction,
                [*maps, *prefix],
                random_direction(model.tasks[task], prediction, generator),
                retain_graph=probe < probes - 1,
                allow_unused=True,
                materialize_grads=True,
            )
            for total, of_map, of_prefix, scale in zip(
                found, gradients[: len(maps)], gradients[len(maps) :], scales, strict=True
            ):
                tokens = torch.cat([of_map.flatten(2).transpose(1, 2), of_prefix], dim=1).flatten(0, 1)
                tokens = tokens.double() * scale.to(device)
                total += tokens.T @ tokens
    decoder.cpu()
    return [total.cpu() / (count * probes) for total in found]


def decoder_metrics(
    model: MultiTaskModel,
    features: CalibrationFeatures,
    scales: Mapping[tuple[str, int], Tensor],
    device: torch.device,
    images: int = 32,
    probes: int = 4,
    floor: float = 0.1,
    seed: int = 0,
) -> dict[tuple[str, int], OutputMetric]:
    """The metric of every task and tap: K = (1 - floor) G + floor I.

    G is what the decoder reads (`reading`), brought to a mean diagonal of 1, or I where it reads nothing. It holds for
    small errors; the floor keeps directions in it that the decoder sees only when errors are larger.

    Args:
        model: the merged model without aligners; its decoders are the experts'.
        features: of the calibration images, all of them.
        scales: S of every task and tap, (C,): `held_out.output_scale`.
        device: where the decoders run.
        images, probes: see `reading`; both refine the estimate.
        floor: in (0, 1]; 1 is the plain objective.
        seed: of the random directions.
    """
    refuse_share(features)
    found = {}
    for task in model.tasks:
        expert = features.experts[task]
        own = [scales[task, tap].cpu() for tap in range(len(expert.patches))]
        for tap, read in enumerate(reading(model, task, expert, own, images, probes, seed, device)):
            size = float(read.trace()) / len(read)
            eye = torch.eye(len(read), dtype=read.dtype)
            metric = OutputMetric.of(floor * eye + (1 - floor) * (read / size if size > 0 else eye))
            spreads = expert_spreads(expert, tap, own[tap], metric)
            found[task, tap] = OutputMetric(metric.root, metric.inverse, spreads)
    return found


def expert_spreads(
    expert: Features, tap: int, scale: Tensor, metric: OutputMetric, chunk: int = 64
) -> tuple[tuple[float, ...], ...]:
    """For each fold and group of tokens what deviations from the group's mean within the fold cost in sum."""
    found = []
    for start, end in fold_bounds(len(expert)):
        patches, prefix = expert.patches[tap][start:end], expert.prefix[tap][start:end]
        groups = [patches.flatten(0, 1), *prefix.unbind(1)]
        found.append(tuple(_spread(group, scale, metric, chunk * patches.shape[1]) for group in groups))
    return tuple(found)


def _spread(tokens: Tensor, scale: Tensor, metric: OutputMetric, chunk: int) -> float:
    mean = channel_means(tokens, chunk)
    root = metric.root.float()  # errors of rounding are those of the deviations, not of the means
    unit = OutputMetric(root, root)
    parts = ((part.double() - mean).float() for part in torch.split(tokens, chunk))
    return sum(float(measured(part, scale.float(), unit).double().square().sum()) for part in parts)
