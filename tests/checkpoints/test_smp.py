"""A DPT that was trained with segmentation_models_pytorch becomes an expert with the same predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch

from simo_merge.checkpoints import from_smp, load, load_expert, save
from simo_merge.errors import SimoError
from simo_merge.models import SingleTaskModel
from simo_merge.tasks import Depth, Segmentation

TASK = Segmentation(classes=("floor", "wall", "lamp"))


def dpt(**changes: Any) -> smp.DPT:
    options = {
        "encoder_weights": None,
        "classes": 3,
        "decoder_intermediate_channels": (4, 6, 8, 10),
        "decoder_fusion_channels": 4,
        "dynamic_img_size": True,
        **changes,
    }
    model = smp.DPT(options.pop("encoder_name", "tu-test_vit"), **options).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def smp_prediction(model: smp.DPT, images: torch.Tensor) -> torch.Tensor:
    """smp models take images that the caller has normalised."""
    config = model.encoder.model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        return model((images - mean) / std)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decoder_readout": "add"},
        {"decoder_readout": "ignore", "encoder_output_indices": [0, 1, 2, -1]},
        {"encoder_depth": 2, "decoder_intermediate_channels": (4, 6)},
        {"dynamic_img_size": None, "img_size": (64, 96)},
    ],
    ids=str,
)
def test_predictions_are_equal(options: dict[str, Any]) -> None:
    model, images = dpt(**options), torch.rand(2, 3, 64, 96)
    expert = from_smp(model, TASK)
    with torch.inference_mode():
        assert torch.equal(expert(images), smp_prediction(model, images))


def test_a_directory_of_save_pretrained_loads_as_an_expert(tmp_path: Path) -> None:
    model, images = dpt(), torch.rand(1, 3, 64, 96)
    model.save_pretrained(tmp_path / "smp")
    expert = load_expert(tmp_path / "smp", TASK)
    with torch.inference_mode():
        assert torch.equal(expert(images), smp_prediction(model, images))
    assert expert.base is None
    assert expert.provenance == {"imported": "smp.DPT test_vit", "path": str(tmp_path / "smp")}


def test_an_imported_expert_can_be_saved_and_reads_other_sizes_than_smp(tmp_path: Path) -> None:
    expert = from_smp(dpt(), TASK)
    again = load(save(expert, tmp_path / "expert"))
    images = torch.rand(1, 3, 50, 70)
    with torch.inference_mode():
        assert torch.equal(again(images), expert(images))


def test_importing_copies_the_weights() -> None:
    model = dpt()
    expert = from_smp(model, TASK)
    before = model.encoder.model.blocks[0].attn.qkv.weight.clone()
    with torch.no_grad():
        expert.encoder.vit.blocks[0].attn.qkv.weight.zero_()
    assert torch.equal(model.encoder.model.blocks[0].attn.qkv.weight, before)


# -- what cannot become an expert -------------------------------------------------------------------------------


def test_the_task_must_be_named(tmp_path: Path) -> None:
    dpt().save_pretrained(tmp_path / "smp")
    with pytest.raises(SimoError, match="does not say what it predicts; name its task"):
        load(tmp_path / "smp")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    model = smp.Unet("resnet18", encoder_weights=None, classes=3)
    with pytest.raises(SimoError, match=r"only smp\.DPT models .* got Unet"):
        from_smp(model, TASK)
    (tmp_path / "config.json").write_text(json.dumps({"_model_class": "Unet"}), encoding="utf-8")
    with pytest.raises(SimoError, match="holds an smp Unet; only smp's DPT"):
        load(tmp_path, TASK)


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(SimoError, match="has 3 output channels, task 'depth' needs 1"):
        from_smp(dpt(), Depth())


@pytest.mark.parametrize("activation", ["sigmoid", "softmax2d"])
def test_an_output_activation_is_refused(activation: str) -> None:
    with pytest.raises(SimoError, match=r"applies an activation .* activation=None"):
        from_smp(dpt(activation=activation), TASK)


@pytest.mark.parametrize(
    "options",
    [
        {"in_channels": 4},
        {"embed_dim": 32, "num_heads": 2},
        {"class_token": False, "global_pool": "avg", "decoder_readout": "ignore"},
        {"num_heads": 4},
    ],
)
def test_an_encoder_that_is_not_timms_own_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SimoError, match="is not timm's test_vit as it stands") as refusal:
        from_smp(dpt(**options), TASK)
    assert "\n" not in str(refusal.value)


def test_patches_that_smps_own_pyramid_cannot_take_are_refused() -> None:
    model = dpt(encoder_name="tu-eva02_tiny_patch14_224")
    with pytest.raises(SimoError, match="powers of two"):
        from_smp(model, TASK)


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_weights_that_were_cut_short_are_refused(tmp_path: Path, kept: int) -> None:
    dpt().save_pretrained(tmp_path / "smp")
    file = tmp_path / "smp" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(SimoError, match="the smp model cannot be read"):
        load(tmp_path / "smp", TASK)


def test_weights_that_are_missing_are_refused_without_asking_a_hub(tmp_path: Path) -> None:
    dpt().save_pretrained(tmp_path / "smp")
    (tmp_path / "smp" / "model.safetensors").unlink()
    with pytest.raises(SimoError, match="the smp model cannot be read"):
        load(tmp_path / "smp", TASK)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = dpt()
    with torch.no_grad():
        model.encoder.model.norm.weight[0] = torch.nan
    with pytest.raises(SimoError, match="NaN or infinity"):
        from_smp(model, TASK)


def test_options_that_smp_does_not_know_are_refused(tmp_path: Path) -> None:
    dpt().save_pretrained(tmp_path / "smp")
    file = tmp_path / "smp" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "decoder_readout": "sum"}), encoding="utf-8")
    with pytest.raises(SimoError, match="the smp model cannot be read"):
        load(tmp_path / "smp", TASK)


def test_an_imported_expert_is_in_evaluation_mode() -> None:
    expert = from_smp(dpt().train(), TASK)
    assert isinstance(expert, SingleTaskModel)
    assert not any(module.training for module in expert.modules())
