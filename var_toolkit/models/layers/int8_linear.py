"""Linear layers in 8 bits: whole weights with a scale for each output channel, inputs quantised for each token.

Rows are quantised alone, and products of whole numbers are exact, so no result depends on the other rows of a batch.
On x86 processors oneDNN multiplies, through the operators of torch.compile; elsewhere, and on CUDA, `torch._int_mm`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.models.layers.blocks import transformer_blocks
from var_toolkit.models.layers.int8_layer import LARGEST, SMALLEST_SCALE, Int8Layer, is_quantized, on_x86

ZERO_POINT = 128  # of inputs for oneDNN, which multiplies unsigned ones
MULTIPLE = 8  # of both sizes of a weight that CUDA multiplies in int8
# On the CPU tensors of more values than these took about 1.3 times as long as by pieces of so many rows, while smaller
# ones took as long or less as a whole (AMD EPYC, one thread).
LARGE, PIECE = 2**23, 512
FEWEST_ROWS = 24  # of inputs that CUDA multiplies: more than 16, and a multiple of 8


class Int8Linear(Int8Layer):
    """What `quantize_linears` makes of a linear layer. The result has the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return self.with_bias(x, self.bias)

    def with_bias(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product and another bias than the layer's own."""
        return self._by_pieces(x, lambda rows: self._of_rows(rows, bias))

    def _by_pieces(self, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """What is computed of rows, float32 (rows, outputs), in the shape and dtype of the input."""
        rows = x.reshape(-1, x.shape[-1])
        # A graph to export takes any number of rows.
        if torch.compiler.is_exporting() or not rows.is_cpu or len(rows) * max(self.weight.shape) <= LARGE:
            found = compute(rows).to(x.dtype)
        else:
            found = torch.empty(len(rows), len(self.scale), dtype=x.dtype)
            for to, piece in zip(found.split(PIECE), rows.split(PIECE), strict=True):
                to.copy_(compute(piece))
        return found.view(*x.shape[:-1], -1)

    def _of_rows(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        rows = rows.float()
        # Many times as fast on the CPU as a norm, which would take half as long as the product.
        largest = torch.maximum(rows.amax(dim=-1, keepdim=True), rows.amin(dim=-1, keepdim=True).neg())
        row_scale = largest.div(LARGEST).clamp(min=SMALLEST_SCALE)
        product = self._product(rows, row_scale.reciprocal())
        return product.mul_(row_scale) if bias is None else torch.addcmul(bias.float(), product, row_scale)

    def gelu(self, x: Tensor, approximate: str = "tanh") -> Tensor:
        """GELU of the layer; `approximate` is torch's, "tanh" or "none"."""
        return self._by_pieces(x, lambda rows: F.gelu(self._of_rows(rows, self.bias), approximate=approximate))

    def silu(self, x: Tensor) -> Tensor:
        """SiLU of the layer."""
        return F.silu(self(x), inplace=True)

    def _product(self, rows: Tensor, inverse: Tensor) -> Tensor:
        """Rows / their scales, rounded, times the scaled weight: (rows, outputs), float32."""
        if self.weight.is_mkldnn:
            # For signed inputs oneDNN is very slow. The half rounds, since the conversion cuts off.
            moved = torch.addcmul(rows.new_tensor(ZERO_POINT + 0.5), rows, inverse).to(torch.uint8)
            return _qlinear(moved, self.weight, self.scale)
        whole = (rows * inverse).round()
        if rows.is_cuda and any(size % MULTIPLE for size in self.weight.shape):
            return F.linear(whole, self.weight.float()) * self.scale
        if rows.is_cuda and len(rows) < FEWEST_ROWS:
            whole = F.pad(whole, (0, 0, 0, FEWEST_ROWS - len(rows)))
        return torch._int_mm(whole.to(torch.int8), self.weight.t())[: len(rows)] * self.scale

    def dense_weight(self) -> Tensor:
        return self.weight.to_dense().t().contiguous() if self.weight.is_mkldnn else self.weight

    def pack(self) -> None:
        """Reorder the weight to oneDNN's layout in place, where supported."""
        if not self.weight.is_mkldnn and self.weight.device.type == "cpu" and has_int8_operators():
            self.weight = torch.ops.onednn.qlinear_prepack(self.weight, None)


def quantize_linears(network: nn.Module) -> None:
    """Replace the linear layers of a network's transformer blocks by `Int8Linear`, in place.

    A network that is quantised already does not change. ValueError if it has none.
    """
    for parent, name, layer in list(_linears(network)):
        setattr(parent, name, Int8Linear(layer))
    if not is_quantized(network):
        raise ValueError(
            f"{type(network).__name__} has no linear layers in transformer blocks, which int8 is for; use float32"
        )


def share_of_wide(networks: Iterable[nn.Module], inputs: int) -> float:
    """The share of the weights that int8 is for whose layers have at least so many inputs; 0 where it is for none."""
    weights = [layer.weight for network in networks for _, _, layer in _linears(network)]
    wide = sum(weight.numel() for weight in weights if weight.shape[1] >= inputs)
    return wide / max(1, sum(weight.numel() for weight in weights))


def _linears(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The linear layers of the transformer blocks, each behind the module that it belongs to and its name there."""
    for block in transformer_blocks(network):
        for parent in block.modules():
            for name, layer in parent.named_children():
                if isinstance(layer, nn.Linear):
                    yield parent, name, layer


def has_blocks(network: nn.Module) -> bool:
    """Whether a network has transformer blocks; some draft heads have none."""
    return any(True for _ in transformer_blocks(network))


def _qlinear(moved: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    zero = torch.zeros(len(scale), dtype=torch.int32)
    operator = torch.ops.onednn.qlinear_pointwise
    found: Tensor = operator(moved, 1.0, ZERO_POINT, weight, scale, zero, None, 1.0, 0, torch.float32, "none", [], "")
    return found


@torch.compiler.assume_constant_result
@cache
def has_int8_operators() -> bool:
    """Whether torch has these private operators and they compute what they should, as `linear` asks for its own."""
    try:
        return on_x86() and _operators_agree()
    except (AttributeError, RuntimeError, TypeError):
        return False


def _operators_agree() -> bool:
    """Try the operators once on a small product, with inputs at both ends of their range."""
    whole, weight = torch.arange(-127, 128, 2).view(4, 32), torch.arange(-127, 128, 2).view(32, 4).t().contiguous()
    scale = torch.tensor([0.5, 1.0, 2.0, 0.25])
    packed = torch.ops.onednn.qlinear_prepack(weight.to(torch.int8), None)
    wanted = (whole @ weight.t()) * scale
    found = _qlinear((whole + ZERO_POINT).to(torch.uint8), packed, scale)
    return torch.allclose(found, wanted) and torch.equal(packed.to_dense().t(), weight.to(torch.int8))
