"""Weights in eight bits for small files: whole numbers, and one scale for each output channel.

They are floats again once they are read, so this is how weights are stored, not how networks compute.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from var_toolkit.registry import SCALE

SMALL = 1024  # tensors with fewer values stay as they are


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, the large matrices and kernels among them as int8 with a float32 scale for each row."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.numel() < SMALL or not tensor.is_floating_point():
            stored[name] = tensor
            continue
        values = tensor.float()
        largest = values.flatten(1).abs().amax(dim=1).clamp(min=1e-12)
        scale = (largest / 127).view(-1, *[1] * (values.ndim - 1))
        stored[name] = (values / scale).round().to(torch.int8)
        stored[name + SCALE] = scale.flatten()
    return stored


def unpacked(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors as floats. ValueError in one line for scales that do not fit."""
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE)}
    for key in (name for name in tensors if name.endswith(SCALE)):
        name, scale = key.removesuffix(SCALE), tensors[key]
        values = found.get(name)
        if values is None or values.dtype != torch.int8 or values.ndim < 2 or scale.shape != values.shape[:1]:
            raise ValueError(f"{source}: {key} has no rows of {name} in eight bits to scale; the file is damaged")
        found[name] = values.float() * scale.float().view(-1, *[1] * (values.ndim - 1))
    return found
