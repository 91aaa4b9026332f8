"""The demo's pictures: every model's prediction beside the truth, in one colour scale a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simo_merge.demo import pictures
from simo_merge.models import MultiTaskModel, SingleTaskModel
from simo_merge.report import Panel, PanelCell
from tests.tiny import DEPTH, SEGMENTATION, SIZE, TinyData

Experts = list[SingleTaskModel]


def test_an_image_becomes_bytes() -> None:
    image = torch.tensor([0.0, 0.5, 1.2]).view(3, 1, 1).expand(3, 2, 4)
    shown = pictures.picture(image)
    assert (shown.shape, shown.dtype) == ((2, 4, 3), np.uint8)
    assert shown[0, 0].tolist() == [0, 128, 255]


def test_predictions_are_those_of_the_models(experts: Experts, merged: MultiTaskModel) -> None:
    image = TinyData(1)[0].image
    with torch.inference_mode():
        alone = {expert.task.name: expert(image[None])[0] for expert in experts}
        together = merged(image[None])
    for model, expected in ((experts, alone), (merged, {name: value[0] for name, value in together.items()})):
        found = pictures.predictions(model, image)
        assert found.keys() == {"segmentation", "depth"}
        for name, prediction in found.items():
            torch.testing.assert_close(prediction, expected[name])


def test_a_test_panel_has_the_truth_and_every_model_for_each_task(experts: Experts, merged: MultiTaskModel) -> None:
    data = TinyData(4, (SEGMENTATION, DEPTH), split="test")
    panels = pictures.test_panels(data, {"experts": experts, "merged": merged}, [0, 3])
    assert [panel.title for panel in panels] == [f"test image {data.keys[0]}", f"test image {data.keys[3]}"]
    for panel in panels:
        assert [(cell.row_label, cell.column_label) for cell in panel.cells] == [
            (task, column) for task in ("segmentation", "depth") for column in ("truth", "experts", "merged")
        ]
        assert all(cell.picture.shape == (*SIZE, 3) for cell in panel.cells)


def test_the_colours_of_a_row_are_those_of_its_truth(experts: Experts) -> None:
    data = TinyData(1, (DEPTH,))
    sample = data[0]
    (panel,) = pictures.test_panels(data, {"experts": experts}, [0])
    limits = DEPTH.limits(sample.targets["depth"], sample.masks["depth"])
    truth, shown = (cell.picture for cell in panel.cells)
    assert (truth == DEPTH.draw(sample.targets["depth"], sample.masks["depth"], limits)).all()
    assert (shown == DEPTH.draw(pictures.predictions(experts, sample.image)["depth"], None, limits)).all()


def test_the_colours_of_a_photograph_are_those_of_the_first_model(experts: Experts, merged: MultiTaskModel) -> None:
    photo = TinyData(1)[0].image
    (panel,) = pictures.photo_panels({"cat": photo}, merged.tasks, {"experts": experts, "merged": merged})
    assert panel.title == "cat"
    cells = {(cell.row_label, cell.column_label): cell.picture for cell in panel.cells}
    assert len(cells) == 4
    limits = DEPTH.limits(pictures.predictions(experts, photo)["depth"])
    expected = DEPTH.draw(pictures.predictions(merged, photo)["depth"], None, limits)
    assert (cells["depth", "merged"] == expected).all()


def test_a_sheet_holds_the_image_and_its_cells_row_by_row(tmp_path: Path) -> None:
    def grey(value: int) -> np.ndarray:
        return np.full((2, 3, 3), value, np.uint8)

    cells = [PanelCell(task, column, grey(10 * i + j)) for i, task in enumerate("ab") for j, column in enumerate("xyz")]
    (path,) = pictures.save_sheets([Panel("test image 1", grey(200), cells)], tmp_path / "new")
    assert path == tmp_path / "new" / "test-image-1.png"
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (4, 12, 3)
    assert sheet[::2, ::3, 0].tolist() == [[200, 0, 1, 2], [200, 10, 11, 12]]


@pytest.mark.parametrize("models", [{}, {"experts": []}])
def test_no_images_give_no_panels(models: dict[str, Sequence[SingleTaskModel]]) -> None:
    assert pictures.test_panels(TinyData(1, (DEPTH,)), models, []) == []
