"""Convolutions in 8 bits: whole weights with a scale for each output channel, inputs quantised for each image.

Each image is multiplied alone, with a scale and a zero point of its own, so no result depends on the rest of a batch.
On x86 processors oneDNN multiplies, through the operators of torch.compile. Elsewhere, and on CUDA, the weights are
widened at each call and the inputs stay as they are: no faster than a wide convolution.
"""

from __future__ import annotations

from functools import cache
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.models.layers.int8_layer import SMALLEST_SCALE, Int8Layer, on_x86, per_row

STEPS = 254.9  # between the least and the largest value of an image: both are rounded, and 256 would become 0
PIECE = 2**18  # values to quantise at once, which the processor's cache holds
WIDE = ("conv_in", "conv_out")  # of a decoder: little work, and every error of the last one is seen
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]  # stride, padding, dilation, groups


class Int8Conv2d(Int8Layer):
    """What `quantize_convolutions` makes of a convolution. The result has the input's dtype."""

    def __init__(self, wide: nn.Conv2d) -> None:
        super().__init__(wide)
        self.geometry: Geometry = (wide.stride, wide.padding, wide.dilation, wide.groups)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self._convolved(x) if self._onednn_takes(x) else self._wide(x)

    def doubled(self, x: Tensor) -> Tensor:
        """The convolution of what nearest-neighbour upsampling by 2 makes of the input."""
        return self._convolved(x, 2.0) if self._onednn_takes(x) else self._wide(F.interpolate(x, scale_factor=2.0))

    def _onednn_takes(self, x: Tensor) -> bool:
        # A graph to export has no numbers to quantise by.
        return x.device.type == "cpu" and not torch.compiler.is_exporting() and has_int8_convolutions()

    def _wide(self, x: Tensor) -> Tensor:
        weight = (self.dense_weight() * per_row(self.scale, self.weight)).to(x.dtype)
        return F.conv2d(x, weight, self.bias, *self.geometry)

    def _convolved(self, x_BChw: Tensor, enlarged: float = 1.0) -> Tensor:
        weight = self.weight if self.weight.is_mkldnn else _packed(self.weight, self.scale, self.geometry)
        bias = None if self.bias is None else self.bias.float()
        found = []
        for image in x_BChw.split(1):
            whole, step, zero = _quantised(image)
            if enlarged > 1:
                whole = F.interpolate(whole, scale_factor=enlarged)
            found.append(_qconv(whole, step, zero, weight, self.scale, bias, self.geometry))
        return torch.cat(found).to(x_BChw.dtype) if len(found) > 1 else found[0].to(x_BChw.dtype)

    def dense_weight(self) -> Tensor:
        return self.weight.to_dense() if self.weight.is_mkldnn else self.weight

    def pack(self) -> None:
        """Reorder the weight to oneDNN's layout in place, where supported."""
        if not self.weight.is_mkldnn and self.weight.device.type == "cpu" and has_int8_convolutions():
            self.weight = _packed(self.weight, self.scale, self.geometry)


def quantize_convolutions(network: nn.Module) -> None:
    """Replace the convolutions of a tokenizer's decoder, but the first and the last, by `Int8Conv2d`, in place.

    A decoder that is quantised already does not change, nor does a network that has none.
    """
    decoder = getattr(network, "decoder", nn.Identity())
    for parent in list(decoder.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and not (parent is decoder and name in WIDE):
                setattr(parent, name, Int8Conv2d(layer))


def pack_convolutions(network: nn.Module) -> None:
    """Pack every `Int8Conv2d` of a network."""
    for module in network.modules():
        if isinstance(module, Int8Conv2d):
            module.pack()


def _quantised(x_1Chw: Tensor) -> tuple[Tensor, float, int]:
    """An image in unsigned 8 bits, channels last, the value of one step, and the whole number that 0 became.

    After SiLU hardly any value is negative, so symmetric signed numbers would leave half of the range unused.
    """
    x = x_1Chw.float().contiguous(memory_format=torch.channels_last)
    low, high = min(float(x.amin()), 0.0), max(float(x.amax()), 0.0)
    step = max((high - low) / STEPS, SMALLEST_SCALE)
    zero = round(-low / step) if isfinite(step) else 0  # a result that is not finite is, times such a step, NaN
    whole = torch.empty_like(x, dtype=torch.uint8)
    shift, factor = torch.tensor(zero + 0.5), torch.tensor(1 / step)  # the half rounds: the conversion cuts off
    for piece, source in zip(_flat(whole).split(PIECE), _flat(x).split(PIECE), strict=True):
        piece.copy_(torch.addcmul(shift, source, factor))
    return whole, step, zero


def _flat(x_BChw: Tensor) -> Tensor:
    """Values in the order of memory, of a tensor that is channels last."""
    return x_BChw.permute(0, 2, 3, 1).flatten()


def _packed(weight: Tensor, scale: Tensor, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    found: Tensor = torch.ops.onednn.qconv_prepack(weight, scale, 1.0, 1, stride, padding, dilation, groups, None)
    return found


def _qconv(
    whole: Tensor, step: float, zero: int, weight: Tensor, scale: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    rest: tuple[Any, ...] = (*geometry, 1.0, 0, torch.float32, "none", [], "")
    found: Tensor = torch.ops.onednn.qconv2d_pointwise(whole, step, zero, weight, scale, zeros, bias, *rest)
    return found


@torch.compiler.assume_constant_result
@cache
def has_int8_convolutions() -> bool:
    """Whether torch has these private operators and they compute what they should, as `linear` asks for its own."""
    try:
        return on_x86() and _operators_agree()
    except (AttributeError, RuntimeError, TypeError):
        return False


def _operators_agree() -> bool:
    """Try the operators once on a small convolution, whose border is padded with a zero that is no zero in 8 bits."""
    whole = torch.arange(0, 256, 2).view(1, 4, 8, 4).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    weight, scale = torch.arange(-127, 125, 1).view(7, 4, 3, 3).to(torch.int8), torch.linspace(0.25, 2, 7)
    geometry: Geometry = ((1, 1), (1, 1), (1, 1), 1)
    packed = _packed(weight, scale, geometry)
    wanted = F.conv2d((whole.float() - 77) * 0.5, weight * per_row(scale, weight), padding=1)
    found = _qconv(whole, 0.5, 77, packed, scale, None, geometry)
    return torch.allclose(found, wanted) and torch.equal(packed.to_dense(), weight)
