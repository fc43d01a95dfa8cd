"""Parts of Llama-style transformers: RMSNorm and a gated MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from var_toolkit.models.layers.linear import Linear

EPS = 1e-6


def rms_norm(x: Tensor, eps: float = EPS) -> Tensor:
    """x divided by its root mean square over the last dimension; the square is in float32, the result in x's dtype."""
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / x.shape[-1]
    return x * (mean_square + eps).rsqrt().to(x.dtype)


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """rms_norm(x) * (1 + scale) + shift."""
    return torch.addcmul(shift, rms_norm(x), 1 + scale)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned gain."""

    def __init__(self, width: int, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps) * self.weight


class GatedMLP(nn.Module):
    """fc2(gelu(fc1_g x) * fc1_x x) with exact GELU, as FlowAR was trained (its code calls this SwiGLU)."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1_g, self.fc1_x, self.fc2 = Linear(width, hidden), Linear(width, hidden), Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc1_g.gelu(x, "none")
        return self.drop(self.fc2(self.drop(gate * self.fc1_x(x))))


def ratio_of(width: int, hidden: int) -> float:
    """The roundest ratio that the published int(width * ratio * 2 / 3) turns into `hidden`."""
    for parts in range(1, 100):
        ratio = -(-3 * hidden * parts // (2 * width)) / parts
        if int(width * ratio * 2 / 3) == hidden:
            return ratio
    raise ValueError(f"no mlp_ratio gives {hidden} channels at a width of {width}")
