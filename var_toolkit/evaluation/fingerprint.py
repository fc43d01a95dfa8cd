"""A short hash of the weights of networks."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import torch
from torch import nn


def fingerprint(networks: Iterable[nn.Module], *, meaning: str = "") -> str:
    """Twenty hexadecimal digits that change with any weight or its name, or with the text `meaning`."""
    digest = blake2b(meaning.encode(), digest_size=10)
    for network in networks:
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
