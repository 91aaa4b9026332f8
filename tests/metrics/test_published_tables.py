"""Δ worked out from the cells of published tables must be the Δ that the tables print."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from simo_merge.metrics import delta_eq2, delta_per_metric, delta_ratio, gain_ratio

Cells = tuple[float, ...]


def by_name(names: Mapping[str, bool], cells: Cells) -> dict[str, float]:
    return dict(zip(names, cells, strict=True))


# -- "Single-Input Multi-Output Model Merging", arXiv 2504.11268 ------------------------------------------------
# Result tables: cells, the published Δ, and Δ of those cells in ratio form and in the form of its equation (2),
# worked out beforehand.

NYUV2 = {"segmentation": True, "depth": False, "normals": False}
NYUV2_ALONE = (70.79, 0.2314, 18.02)
NYUV2_ROWS = [
    ("MTL", (69.01, 0.2531, 19.01), -5.4, -5.4, -5.8),
    ("TA", (65.78, 0.4171, 26.13), -27.5, -27.5, -44.1),
    ("TIES", (62.62, 0.4157, 31.38), -32.8, -32.8, -55.1),
    ("TA + head", (69.95, 0.2524, 19.29), -5.4, -5.4, -5.8),
    ("TA + repr", (68.95, 0.2539, 18.99), -5.5, -5.5, -5.9),
    ("TIES + head", (66.25, 0.2764, 18.65), -8.7, -8.7, -9.8),
    ("TIES + repr", (68.49, 0.2576, 18.99), -6.2, -6.2, -6.7),
]
CITYSCAPES = {"segmentation": True, "parts": True, "disparity": False}
CITYSCAPES_ALONE = (58.76, 50.88, 0.0102)
CITYSCAPES_ROWS = [
    ("MTL", (56.36, 50.36, 0.0108), -3.7, -3.6, -3.7),
    ("TA", (33.56, 40.55, 0.0147), -31.3, -31.3, -35.8),
    ("TIES", (30.45, 39.91, 0.0111), -26.1, -25.9, -26.2),
    ("TA + head", (53.36, 48.94, 0.0105), -5.3, -5.3, -5.3),
    ("TA + repr", (54.59, 49.37, 0.0105), -4.5, -4.3, -4.3),
    ("TIES + head", (52.13, 48.32, 0.0103), -5.7, -5.8, -5.8),
    ("TIES + repr", (53.12, 48.42, 0.0104), -5.5, -5.5, -5.5),
]
TASKONOMY = dict.fromkeys(("autoencoder", "depth", "normals", "edges", "keypoints"), False)
TASKONOMY_ALONE = (0.0250, 0.0146, 0.0696, 0.0126, 0.0062)
TA, TA_REPR = (0.2067, 0.0668, 0.4467, 0.0750, 0.0846), (0.0283, 0.0186, 0.0968, 0.0199, 0.0071)
TASKONOMY_ROWS = [
    ("MTL", (0.0324, 0.0170, 0.0772, 0.0213, 0.0105), -25.7, -25.7, -39.1),
    ("TA", TA, None, -85.3, -677.0),  # None: see the test of the two cells that disagree with the paper
    ("TIES", (0.3132, 0.3000, 0.0936, 0.1211, 0.0513), -78.0, -78.1, -946.0),
    ("TALL-mask", (0.0650, 0.2271, 0.0768, 0.0782, 0.0196), -63.4, -63.3, -473.0),
    ("TA + head", (0.0301, 0.0270, 0.1428, 0.0256, 0.0073), -36.0, -36.0, -66.3),
    ("TA + repr", TA_REPR, None, -22.1, -30.4),
    ("TIES + head", (0.0266, 0.0290, 0.1707, 0.0213, 0.0060), -31.1, -30.5, -63.2),
    ("TIES + repr", (0.0283, 0.0167, 0.0903, 0.0195, 0.0065), -17.4, -17.4, -23.4),
]
SIMO = [
    pytest.param(higher, alone, *row[1:], id=f"{data}: {row[0]}")
    for data, higher, alone, rows in (
        ("NYUv2", NYUV2, NYUV2_ALONE, NYUV2_ROWS),
        ("Cityscapes", CITYSCAPES, CITYSCAPES_ALONE, CITYSCAPES_ROWS),
        ("Taskonomy", TASKONOMY, TASKONOMY_ALONE, TASKONOMY_ROWS),
    )
    for row in rows
]


@pytest.mark.parametrize(("higher", "alone", "cells", "published", "ratio", "eq2"), SIMO)
def test_both_forms_follow_from_the_cells_of_the_simo_tables(higher, alone, cells, published, ratio, eq2):
    scores, baseline = by_name(higher, cells), by_name(higher, alone)
    half_a_digit = 0.5 if abs(eq2) > 100 else 0.05
    assert delta_ratio(scores, baseline, higher) == pytest.approx(ratio, abs=0.0501)
    assert delta_eq2(scores, baseline, higher) == pytest.approx(eq2, abs=half_a_digit + 1e-4)
    if published is not None:  # from cells before they were rounded, some to two digits
        assert delta_ratio(scores, baseline, higher) == pytest.approx(published, abs=0.7)


@pytest.mark.parametrize(("higher", "alone", "cells", "published", "ratio", "eq2"), SIMO[: len(NYUV2_ROWS)])
def test_the_ratio_form_is_the_one_that_simo_reports(higher, alone, cells, published, ratio, eq2):
    scores, baseline = by_name(higher, cells), by_name(higher, alone)
    assert round(delta_ratio(scores, baseline, higher), 1) == published
    assert round(delta_eq2(scores, baseline, higher), 1) != published


@pytest.mark.parametrize(
    ("cells", "task", "percentage", "published"), [(TA, "normals", 25.6, -83.3), (TA_REPR, "edges", 68.3, -21.1)]
)
def test_two_deltas_of_simo_follow_from_its_printed_percentages_and_not_from_its_cells(
    cells, task, percentage, published
):
    """.0696/.4467 is 15.6 % and .0126/.0199 is 63.3 %; the paper prints 25.6 % and 68.3 % beside them."""
    scores, baseline = by_name(TASKONOMY, cells), by_name(TASKONOMY, TASKONOMY_ALONE)
    gains = {name: gain_ratio(scores[name], baseline[name], False) for name in TASKONOMY}
    assert abs(delta_ratio(scores, baseline, TASKONOMY) - published) > 0.9
    gains[task] = percentage - 100
    assert sum(gains.values()) / len(gains) == pytest.approx(published, abs=0.06)


# -- SyMerge project page: merging and surgery on NYUv2 with a ResNet-50 ----------------------------------------
# Cells: mIoU, absolute error of depth, mean angle. Δ in both forms is arithmetic on them; the page prints none.

SYMERGE_ALONE = (52.0, 41.5, 24.2)
SYMERGE_ROWS = [
    ("weight average", (36.6, 55.0, 30.0), -24.5, -28.7),
    ("TA", (31.6, 56.7, 30.6), -29.0, -34.1),
    ("TIES", (39.9, 61.3, 36.2), -29.6, -40.2),
    ("LiNeS", (36.2, 54.2, 29.1), -23.6, -27.1),
    ("EMR", (41.5, 48.6, 26.5), -14.5, -15.6),
    ("surgery", (43.3, 55.3, 34.7), -24.0, -31.1),
    ("ProbSurgery", (43.6, 52.6, 36.7), -23.8, -31.5),
    ("SyMerge", (49.8, 45.3, 26.2), -6.8, -7.2),
]


@pytest.mark.parametrize(("cells", "ratio", "eq2"), [pytest.param(*row[1:], id=row[0]) for row in SYMERGE_ROWS])
def test_surgery_on_dense_tasks_in_both_forms(cells, ratio, eq2):
    scores, baseline = by_name(NYUV2, cells), by_name(NYUV2, SYMERGE_ALONE)
    assert delta_ratio(scores, baseline, NYUV2) == pytest.approx(ratio, abs=0.051)
    assert delta_eq2(scores, baseline, NYUV2) == pytest.approx(eq2, abs=0.051)


def test_the_two_forms_disagree_on_whether_surgery_beats_the_average_of_weights():
    rows = {name: by_name(NYUV2, cells) for name, cells, *_ in SYMERGE_ROWS}
    baseline = by_name(NYUV2, SYMERGE_ALONE)
    ratio = {name: delta_ratio(cells, baseline, NYUV2) for name, cells in rows.items()}
    eq2 = {name: delta_eq2(cells, baseline, NYUV2) for name, cells in rows.items()}
    assert ratio["surgery"] > ratio["weight average"]
    assert eq2["surgery"] < eq2["weight average"]


# -- one metric a task, equation (2), positive is better --------------------------------------------------------
# Auto-λ: README of github.com/lorenmt/auto-lambda, NYUv2 with 13 classes. NYUD-v2 with 40 classes (mIoU, rmse of
# depth, mean angle, odsF of boundaries): tables of the SAK project page and the PRISM README.

AUTO_LAMBDA_ALONE = (43.37, 52.24, 22.40)
AUTO_LAMBDA_ROWS = [
    ("Equal", (44.64, 43.32, 24.48), 3.57),
    ("DWA", (45.14, 43.06, 24.17), 4.58),
    ("GradDrop", (45.39, 43.23, 24.18), 4.65),
    ("PCGrad", (45.15, 42.38, 24.13), 5.09),
    ("Uncertainty", (45.98, 41.26, 24.09), 6.50),
    ("CAGrad", (46.14, 41.91, 23.52), 7.05),
    ("Auto-Lambda", (47.17, 40.97, 23.68), 8.21),
    ("Auto-Lambda + CAGrad", (48.26, 39.82, 22.81), 11.07),
]
NYUD = {"segmentation": True, "depth": False, "normals": False, "boundary": True}
VIT_L_ALONE = (54.19, 0.5560, 19.22, 78.09)
VIT_L_ROWS = [
    ("ViT-L baseline", (52.42, 0.5413, 19.29, 76.50), -0.76),
    ("ViT-L InvPT", (53.56, 0.5183, 19.04, 78.10), 1.64),
    ("ViT-L InvPT++", (53.85, 0.5096, 18.67, 78.10), 2.65),
    ("ViT-L TaskPrompter", (55.30, 0.5152, 18.47, 78.20), 3.36),
    ("ViT-L BFCI", (55.51, 0.4930, 18.47, 78.22), 4.46),
    ("ViT-L MLoRE", (55.96, 0.5076, 18.33, 78.43), 4.26),
    ("ViT-L RADIO", (59.32, 0.4698, 17.46, 79.41), 8.95),
    ("ViT-L SAK", (63.18, 0.4313, 16.25, 79.43), 14.05),
]
VIT_B_ALONE = (51.15, 0.5792, 19.77, 77.35)
VIT_B_ROWS = [
    ("ViT-B baseline", (49.27, 0.5823, 19.92, 75.88), -1.72),
    ("ViT-B InvPT", (50.30, 0.5367, 19.00, 77.60), 2.47),
    ("ViT-B TaskPrompter", (50.40, 0.5402, 18.91, 77.60), 2.49),
    ("ViT-B BFCI", (51.14, 0.5186, 18.92, 77.98), 3.89),
    ("ViT-B RADIO", (55.03, 0.5186, 18.49, 77.97), 6.33),
    ("ViT-B Theia", (51.80, 0.5367, 19.70, 76.08), 1.83),
    ("ViT-B SAK", (59.93, 0.4942, 17.60, 78.60), 11.11),
    ("ViT-B PRISM", (60.22, 0.4883, 17.81, 76.59), 10.59),
]
EQUATION_2 = [
    pytest.param(higher, alone, *row[1:], id=row[0])
    for higher, alone, rows in (
        (NYUV2, AUTO_LAMBDA_ALONE, AUTO_LAMBDA_ROWS),
        (NYUD, VIT_L_ALONE, VIT_L_ROWS),
        (NYUD, VIT_B_ALONE, VIT_B_ROWS),
    )
    for row in rows
]


@pytest.mark.parametrize(("higher", "alone", "cells", "published"), EQUATION_2)
def test_equation_2_gives_the_delta_of_papers_with_one_metric_a_task(higher, alone, cells, published):
    assert delta_eq2(by_name(higher, cells), by_name(higher, alone), higher) == pytest.approx(published, abs=0.006)


# -- all metrics of all tasks, equation (2), negative is better -------------------------------------------------
# Nash-MTL (Navon et al., ICML 2022, arXiv 2202.01017), tables 2 and 3: SegNet with MTAN's attention. CAGrad, FAMO
# and their successors compare with these rows and take Δm in the same way.

NINE = {
    "segmentation miou": True,
    "segmentation pixel_accuracy": True,
    "depth abs": False,
    "depth rel": False,
    "normals mean": False,
    "normals median": False,
    "normals within_11.25": True,
    "normals within_22.5": True,
    "normals within_30": True,
}
NASH_NYUV2_ALONE = (38.30, 63.76, 0.6754, 0.2780, 25.01, 19.21, 30.14, 57.20, 69.15)
NASH_NYUV2_ROWS = [
    ("LS", (39.29, 65.33, 0.5493, 0.2263, 28.15, 23.96, 22.09, 47.50, 61.08), 5.59),
    ("SI", (38.45, 64.27, 0.5354, 0.2201, 27.60, 23.37, 22.53, 48.57, 62.32), 4.39),
    ("RLW", (37.17, 63.77, 0.5759, 0.2410, 28.27, 24.18, 22.26, 47.05, 60.62), 7.78),
    ("DWA", (39.11, 65.31, 0.5510, 0.2285, 27.61, 23.18, 24.17, 50.18, 62.39), 3.57),
    ("UW", (36.87, 63.17, 0.5446, 0.2260, 27.04, 22.61, 23.54, 49.05, 63.65), 4.05),
    ("MGDA", (30.47, 59.90, 0.6070, 0.2555, 24.88, 19.45, 29.18, 56.88, 69.36), 1.38),
    ("PCGrad", (38.06, 64.64, 0.5550, 0.2325, 27.41, 22.80, 23.86, 49.83, 63.14), 3.97),
    ("GradDrop", (39.39, 65.12, 0.5455, 0.2279, 27.48, 22.96, 23.38, 49.44, 62.87), 3.58),
    ("CAGrad", (39.79, 65.49, 0.5486, 0.2250, 26.31, 21.58, 25.61, 52.36, 65.58), 0.20),
    ("Nash-MTL", (40.13, 65.93, 0.5261, 0.2171, 25.26, 20.08, 28.40, 55.47, 68.15), -4.04),
]
IMTL_G = (39.35, 65.60, 0.5426, 0.2256, 26.02, 21.19, 26.20, 53.13, 66.24)
FOUR = {name: NINE[name] for name in list(NINE)[:4]}
NASH_CITYSCAPES_ALONE = (74.01, 93.16, 0.0125, 27.77)
NASH_CITYSCAPES_ROWS = [
    ("LS", (75.18, 93.49, 0.0155, 46.77), 22.60),
    ("SI", (70.95, 91.73, 0.0161, 33.83), 14.11),
    ("RLW", (74.57, 93.41, 0.0158, 47.79), 24.38),
    ("DWA", (75.24, 93.52, 0.0160, 44.37), 21.45),
    ("UW", (72.02, 92.85, 0.0140, 30.13), 5.89),
    ("MGDA", (68.84, 91.54, 0.0309, 33.50), 44.14),
    ("PCGrad", (75.13, 93.48, 0.0154, 42.07), 18.29),
    ("GradDrop", (75.27, 93.53, 0.0157, 47.54), 23.73),
    ("CAGrad", (75.16, 93.48, 0.0141, 37.60), 11.64),
    ("IMTL-G", (75.33, 93.49, 0.0135, 38.41), 11.10),
    ("Nash-MTL", (75.41, 93.66, 0.0129, 35.02), 6.82),
]


@pytest.mark.parametrize(("cells", "published"), [pytest.param(*row[1:], id=row[0]) for row in NASH_NYUV2_ROWS])
def test_the_mean_over_nine_metrics_is_the_negative_of_what_nash_mtl_prints(cells, published):
    delta = delta_per_metric(by_name(NINE, cells), by_name(NINE, NASH_NYUV2_ALONE), NINE)
    assert -delta == pytest.approx(published, abs=0.0101)


@pytest.mark.parametrize(("cells", "published"), [pytest.param(*row[1:], id=row[0]) for row in NASH_CITYSCAPES_ROWS])
def test_the_mean_over_four_metrics_is_the_negative_of_what_nash_mtl_prints_for_cityscapes(cells, published):
    """To 0.1: half a digit of an absolute error of .0125 is 0.4 % of it, a quarter of which is Δ's share."""
    delta = delta_per_metric(by_name(FOUR, cells), by_name(FOUR, NASH_CITYSCAPES_ALONE), FOUR)
    assert -delta == pytest.approx(published, abs=0.101)


def test_one_row_of_nash_mtl_does_not_follow_from_its_cells():
    """IMTL-G on NYUv2: the paper prints −0.76, its cells give −0.60."""
    delta = delta_per_metric(by_name(NINE, IMTL_G), by_name(NINE, NASH_NYUV2_ALONE), NINE)
    assert -delta == pytest.approx(-0.60, abs=0.005)


def test_a_mean_over_metrics_can_have_another_sign_than_a_mean_over_tasks():
    """Five of the nine are of normals: LS is worse than its experts over metrics and better over tasks."""
    cells, baseline = by_name(NINE, NASH_NYUV2_ROWS[0][1]), by_name(NINE, NASH_NYUV2_ALONE)
    primary = ("segmentation miou", "depth abs", "normals mean")
    assert delta_per_metric(cells, baseline, NINE) == pytest.approx(-5.59, abs=0.01)
    assert delta_eq2({k: cells[k] for k in primary}, {k: baseline[k] for k in primary}, NINE) > 2.0


def test_weights_make_it_the_mean_over_tasks_of_the_mean_over_their_metrics():
    """The example in LibMTL's `count_improvement` (LibMTL/utils.py), worked out by hand; there it is a fraction."""
    base, new = {"A 0": 96.0, "A 1": 98.0, "B 0": 0.2}, {"A 0": 93.0, "A 1": 99.0, "B 0": 0.5}
    higher = {"A 0": True, "A 1": False, "B 0": True}
    weights = {"A 0": 0.5, "A 1": 0.5, "B 0": 1.0}
    task_a, task_b = ((93 - 96) / 96 + (98 - 99) / 98) / 2, (0.5 - 0.2) / 0.2
    assert delta_per_metric(new, base, higher, weights) == pytest.approx(100 * (task_a + task_b) / 2)
