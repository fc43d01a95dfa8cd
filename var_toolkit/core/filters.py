"""From logits to a token: guidance, top-k, top-p, temperature, the draw.

Pure functions. Letters: B images, L tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def guide(logits_2BLV: Tensor, strength: float) -> Tensor:
    """Classifier-free guidance: (1 + strength) conditional - strength null; rows are stacked conditional half first."""
    conditional, null = logits_2BLV.chunk(2)
    return (1 + strength) * conditional - strength * null


def filter_top_k_top_p(logits_BLV: Tensor, *, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Keep the `top_k` largest logits, then the smallest set of those that holds `top_p` of the mass; -inf elsewhere.

    As published for VAR: ties with the k-th logit survive; the mass is counted after top-k; the largest logit is
    always kept. 0 switches either filter off.
    """
    if 0 < top_k < logits_BLV.shape[-1]:
        kth = logits_BLV.topk(top_k, dim=-1).values[..., -1:]
        logits_BLV = logits_BLV.masked_fill(logits_BLV < kth, -torch.inf)  # which also makes the sort below fast
    if top_p > 0:
        ascending, order = logits_BLV.sort(dim=-1)
        dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        dropped[..., -1:].zero_()  # on the device, where an assignment of False would be a copy
        logits_BLV = logits_BLV.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    return logits_BLV


def pick(mass_BLV: Tensor, uniform_BL: Tensor) -> Tensor:
    """One token each, (B, L): where the mass summed over the codes passes `uniform`. A code without mass is not drawn.

    A pure function of masses and noise. Masses need not sum to 1. Where there is no mass at all, or NaN, the result is
    the last code, never an index beyond it.
    """
    summed_BLV = mass_BLV.cumsum(dim=-1)
    # uniform is below 1, so the product stays below the total; the clamp acts only where the total is 0 or NaN.
    found_BL1 = torch.searchsorted(summed_BLV, uniform_BL.unsqueeze(-1) * summed_BLV[..., -1:], right=True)
    return found_BL1.squeeze(-1).clamp(max=mass_BLV.shape[-1] - 1)


def soft_codes(logits_BLV: Tensor, gumbel_BLV: Tensor, codebook_VC: Tensor, *, progress: float) -> Tensor:
    """VAR's smooth mode: a Gumbel-softmax mixture of codes instead of one code, (B, L, C). For looks, never for FID.

    `progress` runs from 0 at the first scale to 1 at the last: logits sharpen and the softmax cools with it.
    """
    tau = max(0.27 * (1 - 0.95 * progress), 0.005)
    return ((logits_BLV * (1 + progress) + gumbel_BLV) / tau).softmax(dim=-1) @ codebook_VC.float()
