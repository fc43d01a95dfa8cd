"""Attention over a pyramid of token maps that computes only what the pattern allows, on every device.

Letters: R rows, H heads, L tokens, D head width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from math import sqrt
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.kernels.reference import attention_mask, reference_attention
from var_toolkit.kernels.tiles import PATTERNS, Pattern, allowed_keys, per_token

if TYPE_CHECKING:
    from var_toolkit.core.schedule import Schedule

Backend = Literal["auto", "triton", "flex", "sdpa", "reference"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
GROUPED_TOKENS = 64  # scales that end within this many tokens share one masked call


def attention(
    q_RHLD: Tensor,
    k_RHLD: Tensor,
    v_RHLD: Tensor,
    scales: Schedule,
    *,
    pattern: Pattern = "block-causal",
    scale: float | None = None,
    logit_scale_H: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """softmax(scale * logit_scale * q k^T) v over the keys that the pattern allows, (R, H, L, D) in the inputs' dtype.

    The L tokens are the first scales of the schedule, or all of them. In "block-causal" (VAR, arXiv 2404.02905) a token
    attends to its own scale and every coarser one; in "block-diagonal" (Markov next-scale prediction: HMAR, arXiv
    2506.04421, which skips the other blocks in training) only to its own scale. `scale` defaults to 1 / sqrt(D);
    `logit_scale_H` is one factor per head. Inputs may have any strides; the result is stored as (R, L, H, D). Under
    autocast, queries, keys and values are cast as torch's own attention casts them.

    "auto" uses the Triton kernels for float16 and bfloat16 on CUDA devices, and SDPA without a large mask elsewhere.
    Every backend is differentiable, also in `logit_scale_H`, except "flex" on the CPU. For float64 use "reference" or
    "sdpa".

    Raises ValueError for tensors of different shapes or dtypes, for a number of tokens that is not a number of whole
    scales, for an unknown pattern or backend, and if the requested backend does not support the inputs.
    """
    lengths = _lengths(q_RHLD, k_RHLD, v_RHLD, scales, logit_scale_H)
    if pattern not in PATTERNS:
        raise ValueError(f"pattern is {pattern!r}; it must be one of {', '.join(PATTERNS)}")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    scale = 1 / sqrt(q_RHLD.shape[-1]) if scale is None else scale
    qkv = _under_autocast(q_RHLD, k_RHLD, v_RHLD)
    if backend == "auto":
        backend = _best_backend(qkv[0])
    backends: dict[str, Callable[..., Tensor]]
    backends = {"triton": _triton, "flex": _flex, "sdpa": _sdpa, "reference": _reference}
    return backends[backend](*qkv, lengths, pattern, scale, logit_scale_H)


def _lengths(q: Tensor, k: Tensor, v: Tensor, scales: Schedule, logit_scale_H: Tensor | None) -> tuple[int, ...]:
    """Number of tokens of each scale in the inputs; ValueError if the inputs do not match."""
    if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape or not q.dtype == k.dtype == v.dtype:
        given = ", ".join(f"{name} {tuple(x.shape)} {x.dtype}" for name, x in zip("qkv", (q, k, v), strict=True))
        raise ValueError(
            f"q, k and v must be (rows, heads, tokens, head width) of the same shape and dtype; given {given}"
        )
    if logit_scale_H is not None and logit_scale_H.shape != q.shape[1:2]:
        raise ValueError(f"logit_scale_H is {tuple(logit_scale_H.shape)}; it must be ({q.shape[1]},), one per head")
    whole = scales.offsets[1:]
    if q.shape[2] not in whole:
        raise ValueError(f"q has {q.shape[2]} tokens; whole scales of the schedule have {', '.join(map(str, whole))}")
    return scales.lengths[: whole.index(q.shape[2]) + 1]


def _under_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


def _best_backend(q_RHLD: Tensor) -> Backend:
    if q_RHLD.device.type != "cuda" or q_RHLD.dtype == torch.float32:
        return "sdpa"  # the kernels compute float32 at full precision, without tensor cores
    reason = _no_triton(q_RHLD)
    if reason is None:
        return "triton"
    _warn_once(f"attention falls back from Triton to SDPA: {reason}")
    return "sdpa"


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def _no_triton(q_RHLD: Tensor) -> str | None:
    """Why the Triton kernels do not support these queries; None if they do."""
    try:
        from var_toolkit.kernels.triton_attention import unsupported
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    return unsupported(q_RHLD.shape[-1], q_RHLD.dtype, q_RHLD.device)


# Each backend: q, k, v (R, H, L, D), tokens of each scale, pattern, scale, logit scale (H) or None -> (R, H, L, D).


def _reference(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], pattern: Pattern, scale: float, logits: Tensor | None
) -> Tensor:
    return reference_attention(q, k, v, _mask(lengths, pattern, q.device), scale, logits)


def _triton(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], pattern: Pattern, scale: float, logits: Tensor | None
) -> Tensor:
    reason = _no_triton(q)
    if reason is not None:
        raise ValueError(f"backend 'triton' cannot be used: {reason}")
    from var_toolkit.kernels.triton_attention import pyramid_attention

    learning = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, logits))
    return pyramid_attention(q, k, v, logits, scale, list(lengths), pattern, learning)[0]


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], pattern: Pattern, scale: float, logits: Tensor | None
) -> Tensor:
    """One masked call for the small scales, and one unmasked call per other scale with the keys it attends to.

    A dense mask would compute every pair. Half-precision training on the CPU computes in float32, whose backward pass
    is faster there.
    """
    dtype = q.dtype
    half_training = q.device.type == "cpu" and dtype.itemsize == 2 and torch.is_grad_enabled() and q.requires_grad
    q = _with_logit_scale(q, logits)
    if half_training:
        q, k, v = q.float(), k.float(), v.float()
    small = max(1, sum(end <= GROUPED_TOKENS for _, end in allowed_keys(lengths, pattern)))
    parts = (sum(lengths[:small]), *lengths[small:])
    if pattern == "block-diagonal":
        keys, values = k.split(parts, 2), v.split(parts, 2)
    else:
        ends = [sum(parts[: i + 1]) for i in range(len(parts))]
        keys, values = [k[:, :, :end] for end in ends], [v[:, :, :end] for end in ends]
    masks = [_mask(lengths[:small], pattern, q.device) if small > 1 else None, *[None] * (len(parts) - 1)]
    with torch.autocast(q.device.type, enabled=False):
        outs = [
            F.scaled_dot_product_attention(q_part, key, value, mask, scale=scale).transpose(1, 2)
            for q_part, key, value, mask in zip(q.split(parts, 2), keys, values, masks, strict=True)
        ]
    return torch.cat(outs, 1).transpose(1, 2).to(dtype)


def _flex(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], pattern: Pattern, scale: float, logits: Tensor | None
) -> Tensor:
    q = _with_logit_scale(q, logits)
    if q.device.type == "cpu":
        return _flex_on_cpu(q, k, v, lengths, pattern, scale)
    return _compiled_flex()(q, k, v, block_mask=_block_mask(lengths, pattern, q.device), scale=scale)


def _flex_on_cpu(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], pattern: Pattern, scale: float) -> Tensor:
    """Runs eagerly: compilation takes half a minute and torch has no backward pass on the CPU either way."""
    from torch.nn.attention.flex_attention import flex_attention

    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError("backend 'flex' has no backward pass on the CPU; use 'sdpa'")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        return flex_attention(q, k, v, block_mask=_block_mask(lengths, pattern, q.device), scale=scale)


def _with_logit_scale(q: Tensor, logit_scale_H: Tensor | None) -> Tensor:
    return q if logit_scale_H is None else (q * logit_scale_H[:, None, None]).to(q.dtype)


# Cached constants of a schedule. They must not be inference tensors, which a later training step could not save for its
# backward pass.


def _mask(lengths: tuple[int, ...], pattern: Pattern, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling():  # a constant of the graph; the compiler cannot trace lru_cache
        return attention_mask(lengths, pattern).to(device)
    return known_mask(lengths, pattern, device)


@lru_cache(maxsize=64)
def known_mask(lengths: tuple[int, ...], pattern: Pattern, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return attention_mask(lengths, pattern).to(device)


@lru_cache(maxsize=64)
def _block_mask(lengths: tuple[int, ...], pattern: Pattern, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    with torch.inference_mode(False):
        begin, end = torch.tensor(per_token(lengths, allowed_keys(lengths, pattern)), device=device).unbind(1)
        total = len(begin)

        def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (begin[query] <= key) & (key < end[query])

        return create_block_mask(allowed, None, None, total, total, device=str(device))


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
