"""What layers in 8 bits share: whole weights with a scale for each output channel, packed, moved, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from var_toolkit.registry import SCALE

LARGEST = 127
SMALLEST_SCALE = 1e-12  # of zeros


class Int8Layer(nn.Module):
    """A layer in 8 bits, for inference only. Its state dict is as `formats.eight_bits` stores weights."""

    weight: Tensor  # int8, (outputs, ...); in oneDNN's layout once it is packed
    scale: Tensor  # float32, (outputs): the value of one step of the weight
    bias: Tensor | None

    def __init__(self, wide: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight = wide.weight.detach()
        values = (weight.to_dense() if weight.is_mkldnn else weight).float()
        scale = values.flatten(1).abs().amax(dim=1).clamp(min=SMALLEST_SCALE) / LARGEST
        self.register_buffer("weight", (values / per_row(scale, values)).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = wide.bias
        super().train(False)

    def dense_weight(self) -> Tensor:
        """The weight as it was before it was packed."""
        raise NotImplementedError

    def pack(self) -> None:
        """Reorder the weight to oneDNN's layout in place, where supported."""
        raise NotImplementedError

    def unpack(self) -> None:
        """Undo `pack`."""
        self.weight = self.dense_weight()

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise ValueError("a network in int8 cannot be trained; load a model that was not saved in int8")
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.unpack()
        scale = self.scale
        super()._apply(fn, recurse)
        moved = self.scale  # whose dtype may have changed with that of the wide weights
        self.scale = moved.float() if scale.is_meta else scale.to(moved.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_buffers": {**self._buffers, "weight": self.dense_weight()}}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.dense_weight()
        destination[prefix + "weight" + SCALE] = destination.pop(prefix + "scale")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "weight" + SCALE in state_dict:
            state_dict[prefix + "scale"] = state_dict.pop(prefix + "weight" + SCALE)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def per_row(scale: Tensor, weight: Tensor) -> Tensor:
    """One number for each output channel, in a shape that multiplies the weight."""
    return scale.view(-1, *[1] * (weight.ndim - 1))


def on_x86() -> bool:
    """Whether this is a processor on which oneDNN's products of 8 bits were tried."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def is_quantized(network: nn.Module) -> bool:
    """Whether a network has layers in 8 bits."""
    return any(isinstance(module, Int8Layer) for module in network.modules())


def weights_of(network: nn.Module) -> Iterator[Tensor]:
    """The parameters of a network, and its weights in 8 bits."""
    yield from network.parameters()
    yield from (module.weight for module in network.modules() if isinstance(module, Int8Layer))
