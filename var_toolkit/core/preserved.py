"""Tokens of a given image that are preserved while the others are drawn: zero-shot editing and variation.

After every draw the preserved tokens are written back, so that the network sees them as its own and draws the rest to
fit. No network is trained for it. Editing preserves what lies outside a mask, as VAR's demonstration does
(arXiv 2404.02905); variation preserves the coarse maps.

The meaning of a residual tokenizer's tokens depends on the coarser maps, whose tokens reach across the border of a
mask. So, beyond the published rule, the latent outside the mask is replaced by that of the given image after every
scale: without this, preserved parts change their colours where much is drawn around them.

Letters: B images, K scales, C channels, h and w of the finest map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.core.schedule import Schedule


@dataclass(frozen=True)
class Preserved:
    """The tokens of a given image, and which of them are preserved in every image that is drawn."""

    tokens: Sequence[Tensor]  # K maps (1, n_k), int64; continuous ones (1, n_k, C)
    mask: Sequence[Tensor]  # K masks (1, n_k), bool: true where a token is preserved
    latents: Sequence[Tensor]  # after every scale, (1, C, h, w); of continuous tokens their maps
    counts: Sequence[int] = ()  # K: how many tokens of each map are preserved

    def merge_tokens(self, scale: int, found: Tensor, positions: slice = slice(None)) -> Tensor:
        """Drawn tokens at some positions of a scale, (B, L) or (B, L, C), with the preserved ones written over them."""
        given, mask = self.tokens[scale][:, positions], self.mask[scale][:, positions]
        return torch.where(mask if found.ndim == 2 else mask.unsqueeze(-1), given, found)

    def merge_codes(self, scale: int, given_BLC: Tensor, codes_BLC: Tensor, positions: slice = slice(None)) -> Tensor:
        """Codes at some positions of a scale, (B, L, C), with given ones where the tokens are preserved."""
        return torch.where(self.mask[scale][:, positions].unsqueeze(-1), given_BLC, codes_BLC)

    def merge_latent(self, scale: int, latent_BChw: Tensor) -> Tensor:
        """The latent after a scale, with that of the given image where the finest tokens are preserved.

        A latent that is smaller than the finest map takes the mask of its own scale.
        """
        size = latent_BChw.shape[-2:]
        mask = self.mask[-1 if size == self.latents[-1].shape[-2:] else scale]
        side = isqrt(size.numel() // mask.shape[1])  # of the patch of cells that a token has
        cells = mask.unflatten(1, (1, size[0] // side, size[1] // side))
        cells = cells.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3) if side > 1 else cells
        return torch.where(cells, self.latents[scale], latent_BChw)


@torch.no_grad()
def preserved_outside(mask_hw: Tensor, tokens: Sequence[Tensor], tokenizer: Any, schedule: Schedule) -> Preserved:
    """What is preserved when the true cells of the finest map are redrawn, and the matching cells of coarser maps.

    As published, a token is preserved if more than half of its area is, judged by bilinear interpolation, and a map of
    one token always is, because it decides the look of the whole. Here it is redrawn if nothing else is preserved.
    """
    mask_hw = mask_hw.cpu()  # so that the comparison with one half gives the same result for every device
    outside_11hw = 1 - mask_hw.float()[None, None]
    found, counts = [], []
    for size in schedule.maps:
        preserved = F.interpolate(outside_11hw, size=size, mode="bilinear").flatten(1) > 0.5
        preserved = ~mask_hw.all() | preserved if size == (1, 1) else preserved
        counts.append(int(preserved.sum()))
        found.append(preserved.to(tokens[0].device))
    return Preserved(tokens, found, tokenizer.pyramid_of(schedule).latents(tokens), counts)


@torch.no_grad()
def preserved_before(from_scale: int, tokens: Sequence[Tensor], tokenizer: Any, schedule: Schedule) -> Preserved:
    """What is preserved when all scales from one on are redrawn: every map before it."""
    mask = [torch.full(own.shape[:2], k < from_scale, device=own.device) for k, own in enumerate(tokens)]
    counts = [own.shape[1] * (k < from_scale) for k, own in enumerate(tokens)]
    return Preserved(tokens, mask, tokenizer.pyramid_of(schedule).latents(tokens), counts)


def require_scale(from_scale: int, scales: Schedule) -> None:
    """ValueError unless an image of some scales can be redrawn from `from_scale` on."""
    if not isinstance(from_scale, int) or isinstance(from_scale, bool) or not 0 <= from_scale <= len(scales):
        raise ValueError(
            f"from_scale is {from_scale!r}; it must be from 0 (redraws everything) to {len(scales)}, the number of "
            "scales (redraws nothing)"
        )
