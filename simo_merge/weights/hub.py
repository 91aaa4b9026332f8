"""Pretrained weights from timm's hub: its cache needs no network, a download without one fails fast."""

from __future__ import annotations

import logging
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from simo_merge.errors import SimoError

logger = logging.getLogger(__name__)

# The hub's own client retries for most of a minute; whether anything answers is known sooner.
PATIENCE = 3.0  # seconds
FILES = ("model.safetensors", "pytorch_model.bin")


def cached(cfg: dict[str, Any]) -> Path | None:
    """Return the file of a timm `pretrained_cfg` if an earlier download left it here; needs no network."""
    repository, revision = _address(cfg)
    for name in _names(cfg):
        path = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(path, str):
            return Path(path)
    return None


def download(cfg: dict[str, Any]) -> Path:
    """Fetch the hub's file for a timm `pretrained_cfg` into the hub's own cache.

    Raises:
        SimoError: at once in offline mode, after `PATIENCE` seconds without an answer, or if the hub refuses.
    """
    repository, revision = _address(cfg)
    _refuse_unreachable(repository)
    for name in _names(cfg):
        path = _fetch(repository, name, revision)
        if path is not None:
            return path
    raise SimoError(f"The repository {repository} has none of the files {', '.join(_names(cfg))}.")


def tag(cfg: dict[str, Any]) -> str:
    """The pretrained tag, for example `lvd142m`."""
    return str(cfg.get("tag") or "default")


def _address(cfg: dict[str, Any]) -> tuple[str, str | None]:
    if not cfg.get("hf_hub_id"):
        raise SimoError(
            f"timm has no pretrained weights for {cfg.get('architecture', 'this model')}. Pass weights=PATH "
            'with a file of your own, or weights="random".'
        )
    repository, _, revision = str(cfg["hf_hub_id"]).partition("@")
    return repository, revision or None


def _names(cfg: dict[str, Any]) -> tuple[str, ...]:
    named = cfg.get("hf_hub_filename")
    return (str(named),) if named else FILES


def _fetch(repository: str, name: str, revision: str | None) -> Path | None:
    """One file, or None if the repository is there and has no such file."""
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    # Networks, disks, permissions, gates: the client has a dozen exceptions of three libraries for them, and
    # each is something that the user can mend.
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        reason = " ".join(str(error).split())[:300]
        raise SimoError(f"Downloading {name} of {repository} failed: {reason}") from error


def _refuse_unreachable(repository: str) -> None:
    endpoint = huggingface_hub.constants.ENDPOINT
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise SimoError(f"{repository} is not in the hub's cache, and HF_HUB_OFFLINE forbids downloading it.")
    logger.info("asking %s for %s", endpoint, repository)
    answered: list[bool] = []
    # A thread, because looking up a host name has a time limit of its own, which cannot be set.
    thread = threading.Thread(target=lambda: answered.append(_answers(endpoint)), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not any(answered):
        raise SimoError(f"{repository} is not in the hub's cache, and {endpoint} does not answer.")


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True  # it refuses this page, but it is there
    except (OSError, ValueError):
        return False
    return True
