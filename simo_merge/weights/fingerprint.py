"""The identity of a set of weights: experts can be merged only if they started from the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def fingerprint(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the sorted names, the shapes and the values as little-endian float32.

    The order of the keys, the file format and the storage type do not matter, as long as that type is float32
    or converts to it without loss (float16 and bfloat16 do).

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach()
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        values = tensor.to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
        digest.update(values.tobytes())
    return digest.hexdigest()
