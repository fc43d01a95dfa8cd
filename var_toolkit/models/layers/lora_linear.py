"""The layer that peft puts in the place of `Linear`; importing this imports peft."""

from peft.tuners import lora
from torch import Tensor
from torch.nn import functional as F


class LoraLinear(lora.Linear):
    """peft's layer with the methods of `Linear`."""

    def with_bias(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product and another bias than the layer's own."""
        found, own = self(x), self.base_layer.bias
        found = found if own is None else found - own
        return found if bias is None else found + bias

    def gelu(self, x: Tensor, approximate: str = "tanh") -> Tensor:
        """GELU of the layer; `approximate` is torch's, "tanh" or "none"."""
        return F.gelu(self(x), approximate=approximate)

    def silu(self, x: Tensor) -> Tensor:
        """SiLU of the layer."""
        return F.silu(self(x))
