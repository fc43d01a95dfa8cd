"""Linear layers that use the fastest library on the CPU.

On the CPU without gradients, matrix products call oneDNN through the operators that torch.compile uses. In float32 this
is 1.1 (many rows) to 1.9 times (few rows) as fast as MKL, torch's default, on non-Intel processors with AVX-512. GELU
or SiLU is fused into the product. A weight that is prepacked in oneDNN's layout is not reordered at every call, which
is 2.6 times as fast at two rows. On CUDA, GELU is fused into the product by cuBLASLt.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from var_toolkit.models.layers.int8_linear import Int8Linear

ROWS = 512  # the number of rows to optimise the packed layout for; it works with any other


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias."""
    if _onednn_takes(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, _dense(weight), bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, approximate: str = "tanh") -> Tensor:
    """GELU of x @ weight.T + bias; `approximate` is torch's, "tanh" or "none"."""
    if _onednn_takes(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], approximate)
    if bias is not None and approximate == "tanh" and _cublas_takes(x, weight):
        return torch._addmm_activation(bias, x.flatten(0, -2), weight.T, use_gelu=True).unflatten(0, x.shape[:-1])
    return F.gelu(F.linear(x, _dense(weight), bias), approximate=approximate)


def linear_silu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """SiLU of x @ weight.T + bias."""
    if _onednn_takes(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "swish", [], "")
    return F.silu(F.linear(x, _dense(weight), bias))


class Linear(nn.Linear):
    """nn.Linear computed by `linear`. A packed layer unpacks itself to be moved, copied, saved or trained."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def with_bias(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product and another bias than the layer's own."""
        return linear(x, self.weight, bias)

    def gelu(self, x: Tensor, approximate: str = "tanh") -> Tensor:
        """GELU of the layer; `approximate` is torch's, "tanh" or "none"."""
        return linear_gelu(x, self.weight, self.bias, approximate)

    def silu(self, x: Tensor) -> Tensor:
        """SiLU of the layer."""
        return linear_silu(x, self.weight, self.bias)

    def pack(self) -> None:
        """Reorder the weight to oneDNN's layout in place, where supported. A packed weight has no gradient."""
        if not self.weight.is_mkldnn and _supported(self.weight):
            packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), ROWS)
            self.weight = nn.Parameter(packed, requires_grad=False)

    def unpack(self) -> None:
        """Undo `pack`."""
        if self.weight.is_mkldnn:
            self.weight = nn.Parameter(self.weight.to_dense())

    def train(self, mode: bool = True) -> Linear:
        if mode:
            self.unpack()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear:
        self.unpack()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        dense = {**self._parameters, "weight": nn.Parameter(_dense(self.weight), self.weight.requires_grad)}
        return {**self.__dict__, "_parameters": dense}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = _dense(destination[prefix + "weight"])


def pack_linears(network: nn.Module) -> None:
    """Pack the linear layers, in 8 bits or not, of a network that is used for inference only."""
    for module in network.modules():
        if isinstance(module, (Linear, Int8Linear)):
            module.pack()


def unpack_linears(network: nn.Module) -> None:
    """Undo `pack_linears`."""
    for module in network.modules():
        if isinstance(module, (Linear, Int8Linear)):
            module.unpack()


@torch.compiler.assume_constant_result
@cache
def _has_onednn() -> bool:
    """Whether torch has these private operators and they compute what they should; otherwise plain layers are used."""
    # Elsewhere than on x86 these operators have other back ends, on which nothing here was measured.
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        return False
    try:
        return _operators_agree()
    except (AttributeError, RuntimeError, TypeError):  # missing, or called otherwise in another version of torch
        return False


def _operators_agree() -> bool:
    """Try the operators once on a small product."""
    x, weight, bias = torch.linspace(-2, 2, 16).view(2, 8), torch.linspace(-1, 1, 32).view(4, 8), torch.ones(4)
    plain = F.linear(x, weight, bias)
    cases = [("none", "", plain), ("gelu", "tanh", F.gelu(plain, approximate="tanh")), ("swish", "", F.silu(plain))]
    operators = torch.ops.mkldnn
    operators._is_mkldnn_bf16_supported()
    packed = operators._reorder_linear_weight(weight, ROWS)
    return all(
        torch.allclose(operators._linear_pointwise(x, given, bias, name, [], how), wanted, atol=1e-4)
        for name, how, wanted in cases
        for given in (weight, packed)
    )


def _dense(weight: Tensor) -> Tensor:
    return weight.to_dense() if weight.is_mkldnn else weight


def _onednn_takes(x: Tensor, weight: Tensor) -> bool:
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if weight.is_mkldnn:  # no weight is packed unless it is supported
        return True
    return not torch.compiler.is_compiling() and _supported(x)  # the compiler refuses weights that are no constants


def _cublas_takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the product and GELU, there by its tanh approximation, can be one kernel, which has no gradient."""
    if not x.is_cuda or torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"):
        return False
    return not is_traceable_wrapper_subclass(weight)  # a quantised weight has products of its own


def _supported(tensor: Tensor) -> bool:
    if tensor.device.type != "cpu" or not (torch.backends.mkldnn.enabled and _has_onednn()):
        return False
    half = tensor.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return half or tensor.dtype == torch.float32
