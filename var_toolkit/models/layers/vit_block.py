"""The pre-norm block of vision transformers with timm's names, some of whose queries may be left out.

Letters: R rows, L tokens, Q queries, C width, H heads, D head width.
"""

from __future__ import annotations

from typing import cast

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.models.layers.attention import to_all
from var_toolkit.models.layers.linear import Linear

EPS = 1e-6


class ViTAttention(nn.Module):
    """Multi-head self-attention with biases."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.proj, self.proj_drop = Linear(width, 3 * width), Linear(width, width), nn.Dropout(dropout)

    def forward(self, x_RLC: Tensor, queries: slice = slice(None)) -> Tensor:
        """Some tokens attend to all."""
        q, k, v = rearrange(self.qkv(x_RLC), "r l (three h d) -> three r h l d", three=3, h=self.heads)
        q = q[:, :, queries]
        if self.training and self.dropout > 0:
            found = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)
        else:
            found = to_all(q, k, v, q.shape[-1] ** -0.5)
        return self.proj_drop(self.proj(rearrange(found, "r h q d -> r q (h d)")))


class ViTMLP(nn.Module):
    """Two layers with exact GELU between them."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2, self.drop = Linear(width, hidden), Linear(hidden, width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.fc1.gelu(x, "none"))))


class ViTBlock(nn.Module):
    """Attention and MLP, each after a LayerNorm."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.attn = ViTAttention(width, heads, dropout)
        self.mlp = ViTMLP(width, int(width * mlp_ratio), dropout)

    def forward(self, x_RLC: Tensor, queries: slice = slice(None)) -> Tensor:
        """All tokens, or some that attend to all, (R, Q, C)."""
        x_RQC = x_RLC[:, queries] + self.attn(self.norm1(x_RLC), queries)
        return cast(Tensor, x_RQC + self.mlp(self.norm2(x_RQC)))
