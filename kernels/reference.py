"""Attention over a pyramid of token maps in plain PyTorch: slow and simple; every other implementation must equal it.

Letters: R rows, H heads, L tokens, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from var_toolkit.kernels.tiles import Pattern, allowed_keys, per_token


def attention_mask(lengths: tuple[int, ...], pattern: Pattern) -> Tensor:
    """Attention mask, bool (L queries, L keys), for scales of these lengths."""
    begin, end = torch.tensor(per_token(lengths, allowed_keys(lengths, pattern))).unbind(1)
    keys = torch.arange(sum(lengths))
    return (begin[:, None] <= keys) & (keys < end[:, None])


def reference_attention(
    q_RHLD: Tensor, k_RHLD: Tensor, v_RHLD: Tensor, mask_LL: Tensor, scale: float, logit_scale_H: Tensor | None
) -> Tensor:
    """softmax(scale * logit_scale * q k^T) v over the allowed keys, in the inputs' dtype, (R, H, L, D)."""
    scores = q_RHLD @ k_RHLD.transpose(-1, -2) * scale
    if logit_scale_H is not None:
        scores = scores * logit_scale_H[:, None, None]
    return scores.masked_fill(~mask_LL, -torch.inf).softmax(-1).to(v_RHLD.dtype) @ v_RHLD
