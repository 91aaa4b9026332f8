"""An affinity report with a measure of weights, one of labels, a sweep and groupings."""

from __future__ import annotations

import pytest
import torch

from simo_merge.affinity import AffinityMatrix, LambdaSweep
from simo_merge.affinity.grouping import group_tasks
from simo_merge.report.affinity import AffinityReport

TASKS = ("seg", "depth", "normals")


@pytest.fixture
def report() -> AffinityReport:
    values = torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, 0.1], [0.2, 0.1, 1.0]])
    cosine = AffinityMatrix("cosine", TASKS, values, True, "weights", {"block 1": values})
    transfer = AffinityMatrix("transfer", TASKS, values - 1, False, "labels", images=4, labels=4)
    metrics = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0)).double() + 0.1
    sweep = LambdaSweep(TASKS, (0.0, 1.0), metrics, metrics[0, 1], metrics[0, 0], ("a", "b", "c"), (True,) * 3, "rooms")
    return AffinityReport(
        {"cosine": cosine, "transfer": transfer},
        [group_tasks(cosine, k) for k in (1, 2)],
        {"transfer": [group_tasks(transfer, k) for k in (1, 2)]},
        sweep,
        {"date": "2030-01-02", "cpu": "<fast>"},
        ["simo-merge affinity a b c -o out"],
        {"cosine": "Cosine & more."},
    )
