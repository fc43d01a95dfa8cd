"""Attention layers of the transformers: with L2-normalised queries and keys, with RoPE, or plain.

Letters: R rows, L tokens, C width, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import log, sqrt
from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from var_toolkit.core.cache import KVCache, SparseCache
from var_toolkit.core.schedule import Schedule
from var_toolkit.kernels.pyramid_attention import attention as attend_in_pyramid
from var_toolkit.kernels.tiles import Pattern
from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.layers.rotary import Rotation

MAX_LOG_SCALE = log(100)
HEADS_FIRST = (2, 0, 3, 1, 4)  # (R, L, n, H, D) -> n of (R, H, L, D); the compiler traces einops slowly
Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # queries, keys, values (R, H, L, D), score scale


def to_all(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Every query attends to every key."""
    if q.shape[2] == 1 and q.is_cpu:
        return _single_query(q, k, v, scale)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def _single_query(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of a single query as two float32 products; torch's kernel is up to four times slower on a CPU."""
    scores = (q.float() * scale) @ k.float().mT
    return (scores.softmax(dim=-1) @ v.float()).to(v.dtype)


def to_allowed(mask_QL: Tensor, dropout: float = 0.0) -> Attend:
    """Queries attend where the mask, bool (queries, keys), is true; `dropout` applies to the attention weights."""
    return lambda q, k, v, scale: F.scaled_dot_product_attention(q, k, v, mask_QL, dropout, scale=scale)


def to_weighted_first(first_R: Tensor, mask: Tensor | None) -> Attend:
    """As `to_allowed`, or to all, with `first_R` added to the scores of the first key: its logarithmic weight."""

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        bias = q.new_zeros(len(q), 1, 1, k.shape[2])
        bias[..., 0] = first_R.to(q.dtype).view(-1, 1, 1)
        if mask is not None:
            bias = bias.masked_fill(~mask, float("-inf"))
        return F.scaled_dot_product_attention(q, k, v, bias, scale=scale)

    return attend


def within_pyramid(scales: Schedule, pattern: Pattern) -> Attend:
    """Attention over the first scales of a pyramid in one pass, without computing the scores that its mask discards."""
    return partial(_pyramid, scales=scales, pattern=pattern)


def block_causal(scales: Schedule, computed: range, device: torch.device, dropout: float = 0.0) -> Attend:
    """Attention of the tokens of the scales `computed` to themselves and to the coarser scales in the cache."""
    if dropout > 0:
        return to_allowed(scales.block_causal_mask(computed.start, computed.stop, device), dropout)
    if len(computed) <= 1:
        return to_all
    if computed.start == 0:
        return within_pyramid(scales, "block-causal")
    return to_allowed(scales.block_causal_mask(computed.start, computed.stop, device))


def _pyramid(q: Tensor, k: Tensor, v: Tensor, scale: float, *, scales: Schedule, pattern: Pattern) -> Tensor:
    return attend_in_pyramid(q, k, v, scales, pattern=pattern, scale=scale)


def skip_causal(blocks: Schedule) -> Attend:
    """Attention of clean blocks, then of as many noisy ones (ACDiT), without the scores that its mask discards.

    A clean block attends to clean ones up to itself, a noisy one to the clean ones before it and to itself.
    """
    return partial(_skip_causal, blocks=blocks)


def _skip_causal(q: Tensor, k: Tensor, v: Tensor, scale: float, *, blocks: Schedule) -> Tensor:
    clean = slice(0, blocks.total)
    parts = [x[:, :, clean] for x in (q, k, v)]
    found = [attend_in_pyramid(*parts, blocks, pattern="block-causal", scale=scale)]
    for first, end in pairwise(blocks.offsets):
        own = slice(blocks.total + first, blocks.total + end)
        keys, values = (torch.cat((x[:, :, :first], x[:, :, own]), dim=2) for x in (k, v))
        found.append(F.scaled_dot_product_attention(q[:, :, own], keys, values, scale=scale))
    return torch.cat(found, dim=2)


class Constants(NamedTuple):
    """What self-attention makes of its parameters alone: the same at every step of a run."""

    bias: Tensor  # of queries, keys and values, (3 C)
    factor: Tensor | None  # of the queries of each head, (1, H, 1, 1), float32; None where they have no unit length
    weight: Tensor | None  # (D), float32, of the RMS norm whose results have unit length; None: other operators give it


class SelfAttention(nn.Module):
    """Multi-head attention with query and value biases and no key bias, as published for VAR.

    With `l2_norm`, queries and keys have unit length and each head learns a logit scale exp(min(s, ln 100)); without it
    the logit scale is 0.25 / sqrt(D). A rotation (RoPE) acts on both after that.
    """

    def __init__(self, width: int, heads: int, *, l2_norm: bool) -> None:
        super().__init__()
        self.heads, self.l2_norm = heads, l2_norm
        self.mat_qkv = Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), log(4.0)))
        self.proj = Linear(width, width)

    def forward(
        self,
        x_RLC: Tensor,
        attend: Attend,
        cache: KVCache | None,
        layer: int,
        rotation: Rotation | None = None,
        constants: Constants | None = None,
    ) -> Tensor:
        """Attend to the new tokens and, if there is a cache, to all cached ones."""
        bias, factor, weight = constants or cast(Constants, constants_of([self])[0])
        qkv = self.mat_qkv.with_bias(x_RLC, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(HEADS_FIRST)
        scale = 0.25 / sqrt(q.shape[-1])
        if factor is not None:
            # Normalise in float32, since half precision loses the unit length; cast to v's dtype before caching.
            q, k = _normed(qkv, weight).permute(HEADS_FIRST)
            q, scale = q * factor, 1.0
        if rotation is not None:
            q, k = rotation(q), rotation(k)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if cache is not None:
            k, v = cache.append(layer, k, v)
            q = q.to(k.dtype)  # the cache keeps the dtype of the weights, also under autocast
            if isinstance(cache, SparseCache):
                observed = cache.observed(qkv.shape[1])
                # Scored, as published, by queries without bias, norm or rotation.
                plain_ROHD = qkv[:, observed, 0] - self.q_bias.view(self.heads, -1)
                cache.evict(layer, plain_ROHD.transpose(1, 2), observed, qkv.shape[1])
        return self.proj(attend(q, k, v, scale).transpose(1, 2).flatten(2))


def constants_of(layers: Sequence[SelfAttention]) -> list[Constants] | list[None]:
    """The constants of layers of equal sizes, computed for all at once.

    None of a sharded network, whose parameters are whole in the pass of their own layer alone.
    """
    if is_traceable_wrapper_subclass(layers[0].q_bias):
        return [None] * len(layers)
    queries = torch.stack([layer.q_bias for layer in layers])
    values = torch.stack([layer.v_bias for layer in layers])
    biases = torch.cat((queries, torch.zeros_like(queries), values), dim=1)
    if not layers[0].l2_norm:
        return [Constants(bias, None, None) for bias in biases]
    scales = torch.stack([layer.scale_mul_1H11 for layer in layers])
    factors = scales.float().clamp(max=MAX_LOG_SCALE).exp()
    weight, side = None, queries.shape[1] // layers[0].heads
    if factors.is_cuda and not torch.is_grad_enabled():
        weight = factors.new_full((side,), side**-0.5)
    return [Constants(bias, factor, weight) for bias, factor in zip(biases, factors, strict=True)]


def _normed(qkv_RL3HD: Tensor, weight: Tensor | None) -> Tensor:
    """Queries and keys with unit length, (R, L, 2, H, D), float32.

    With the `weight` of `Constants` one kernel computes them; it takes the values too, since it would copy a part.
    """
    if weight is None:
        return F.normalize(qkv_RL3HD[:, :, :2].float(), dim=-1)
    return F.rms_norm(qkv_RL3HD.float(), weight.shape, weight, eps=1e-24 / len(weight))[:, :, :2]


class RotaryAttention(nn.Module):
    """Multi-head self-attention with RoPE. Keys are rotated before they are cached."""

    def __init__(self, width: int, heads: int, *, bias: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=bias)
        self.proj = Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(
        self, x_RLC: Tensor, rotation: Rotation, attend: Attend, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """Attend to the new tokens and, if there is a cache, to all cached ones."""
        q, k, v = self.qkv(x_RLC).unflatten(-1, (3, self.heads, -1)).permute(HEADS_FIRST)
        q, k = rotation(q), rotation(k)
        if cache is not None:
            k, v = cache.append(layer, k, v)
            q = q.to(k.dtype)  # the cache keeps the dtype of the weights, also under autocast
        out = attend(q, k, v, q.shape[-1] ** -0.5).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out))


class RotaryCrossAttention(nn.Module):
    """Cross-attention of tokens to a memory on the same grid, with RoPE; only the output projection has a bias."""

    def __init__(self, width: int, heads: int, memory_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width, bias=False)
        self.kv = Linear(memory_width, 2 * width, bias=False)
        self.proj = Linear(width, width)

    def keys_and_values(self, memory_RLC: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, L, D) of the memory, computed once for any number of queries."""
        k, v = rearrange(self.kv(memory_RLC), "r l (two h d) -> two r h l d", two=2, h=self.heads)
        return rotation(k), v

    def forward(self, x_RLC: Tensor, memory: tuple[Tensor, Tensor], rotation: Rotation, attend: Attend) -> Tensor:
        q = rotation(self.q(x_RLC).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        return self.proj(attend(q, *memory, q.shape[-1] ** -0.5).transpose(1, 2).flatten(2))


class MemoryAttention(nn.Module):
    """Cross-attention to a memory whose keys and values are computed once (`keys_and_values`). Keys have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_q = Linear(width, width)
        self.mat_kv = Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = Linear(width, width)

    def keys_and_values(self, memory_RTC: Tensor) -> Tensor:
        """Keys and values of the memory, (R, 2, H, T, D)."""
        bias = torch.cat((torch.zeros_like(self.v_bias), self.v_bias))
        found = self.mat_kv.with_bias(memory_RTC, bias)
        return rearrange(found, "r t (two h d) -> r two h t d", two=2, h=self.heads)

    def forward(self, x_RLC: Tensor, memory_R2HTD: Tensor, mask_RT: Tensor) -> Tensor:
        """Attend to the tokens of the memory for which the mask, bool, is true."""
        q = self.mat_q(x_RLC).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = memory_R2HTD.to(q.dtype).unbind(1)
        found = F.scaled_dot_product_attention(q, k, v, mask_RT[:, None, None])
        return self.proj(found.transpose(1, 2).flatten(2))
