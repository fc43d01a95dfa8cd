"""Attention and MLP of the GPT of LlamaGen (arXiv 2406.06525), without biases.

Letters: R rows, H heads, L tokens, C width, D head width.
"""

from __future__ import annotations

from torch import Tensor, nn

from var_toolkit.core.cache import KVCache
from var_toolkit.models.layers.attention import Attend
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.rotary import Rotation


class RasterAttention(nn.Module):
    """Multi-head self-attention with RoPE and without biases."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv, self.wo = Linear(width, 3 * width, bias=False), Linear(width, width, bias=False)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x_RLC: Tensor, rotation: Rotation, attend: Attend, cache: KVCache | None, layer: int) -> Tensor:
        qkv = self.wqkv(x_RLC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, R, H, L, D)
        (q, k), v = rotation(qkv[:2]), qkv[2]
        if cache is not None:
            k, v = cache.append(layer, k, v)
            q = q.to(k.dtype)  # the cache keeps the dtype of the weights, also under autocast
        out = attend(q, k, v, q.shape[-1] ** -0.5).transpose(1, 2).flatten(2)
        return self.resid_dropout(self.wo(out))


class RasterMLP(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.w1, self.w3 = Linear(width, hidden, bias=False), Linear(width, hidden, bias=False)
        self.w2 = Linear(hidden, width, bias=False)
        self.ffn_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_dropout(self.w2(self.w1.silu(x) * self.w3(x)))
