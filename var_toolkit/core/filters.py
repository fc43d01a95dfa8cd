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
    always kept. Of equal logits of which top-p drops only some, those of the first codes are dropped. 0 switches
    either filter off.
    """
    limited = 0 < top_k < logits_BLV.shape[-1]
    if limited and top_p > 0 and logits_BLV.is_cpu:
        return _among_largest(logits_BLV, top_k, top_p)
    if limited:
        kth = logits_BLV.topk(top_k, dim=-1).values[..., -1:]
        logits_BLV = logits_BLV.masked_fill(logits_BLV < kth, -torch.inf)
    return _smallest_set(logits_BLV, top_p) if top_p > 0 else logits_BLV


def _smallest_set(logits_BLV: Tensor, top_p: float) -> Tensor:
    """Top-p by a sort of all logits."""
    ascending, order = logits_BLV.sort(dim=-1, stable=True)
    dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    dropped[..., -1:].zero_()  # on the device, where an assignment of False would be a copy
    return logits_BLV.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)


def _among_largest(logits_BLV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Both filters by a sort of the `top_k` largest logits, in half of the time.

    On the CPU only, since the host reads whether equal logits were parted: those rows are sorted as a whole.
    """
    largest = logits_BLV.topk(top_k, dim=-1).values
    summed = largest.softmax(dim=-1).flip(-1).cumsum(dim=-1)
    count = (summed > 1 - top_p).sum(dim=-1, keepdim=True).clamp(min=1)
    kept = logits_BLV >= largest.gather(-1, count - 1)
    found = logits_BLV.masked_fill(~kept, -torch.inf)
    least = largest[..., -1:]
    parted = (kept.sum(dim=-1) != count.squeeze(-1)) | ((logits_BLV >= least).sum(dim=-1) != top_k)
    if bool(parted.any()):
        rows = logits_BLV[parted]
        found[parted] = _smallest_set(rows.masked_fill(rows < least[parted], -torch.inf), top_p)
    return found


def pick(mass_BLV: Tensor, uniform_BL: Tensor) -> Tensor:
    """One token each, (B, L): where the mass summed over the codes passes `uniform`. A code without mass is not drawn.

    A pure function of masses and noise. Masses need not sum to 1. Where there is no mass at all, or NaN, the result is
    the last code, never an index beyond it.
    """
    return pick_several(mass_BLV, uniform_BL.unsqueeze(-1)).squeeze(-1)


def pick_several(mass_BLV: Tensor, uniform_BLM: Tensor) -> Tensor:
    """M tokens each, (B, L, M), every one as `pick` draws it."""
    summed_BLV = mass_BLV.cumsum(dim=-1)
    # uniform is below 1, so the product stays below the total; the clamp acts only where the total is 0 or NaN.
    found_BLM = torch.searchsorted(summed_BLV, uniform_BLM * summed_BLV[..., -1:], right=True)
    return found_BLM.clamp(max=mass_BLV.shape[-1] - 1)


def soft_codes(logits_BLV: Tensor, gumbel_BLV: Tensor, codebook_VC: Tensor, *, progress: float) -> Tensor:
    """VAR's smooth mode: a Gumbel-softmax mixture of codes instead of one code, (B, L, C). For looks, never for FID.

    `progress` runs from 0 at the first scale to 1 at the last: logits sharpen and the softmax cools with it.
    """
    tau = max(0.27 * (1 - 0.95 * progress), 0.005)
    return ((logits_BLV * (1 + progress) + gumbel_BLV) / tau).softmax(dim=-1) @ codebook_VC.float()
