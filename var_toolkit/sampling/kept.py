"""Tokens of a given image that stay while the others are drawn: zero-shot editing and variation.

After every draw the image's own tokens take their places again, so that the network sees them as its own and draws
the rest to fit. No network is trained for it. Editing keeps what lies outside a mask, as VAR's demonstration does
(arXiv 2404.02905); variation keeps the coarse maps.

What a residual tokenizer's tokens stand for depends on the coarser maps, whose tokens reach across the border of a
mask. So beyond the published rule the latent outside the mask is the image's own after every scale: otherwise kept
parts change their colours where much is drawn around them.

Letters: B images, K scales, C channels, h and w of the finest map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.sampling.plan import Plan, Tokenizer
from var_toolkit.scales import Scales


@dataclass(frozen=True)
class Kept:
    """An image's tokens, and which of them stay in every image that is drawn."""

    tokens: Sequence[Tensor]  # K maps (1, n_k), int64; continuous ones (1, n_k, C)
    stays: Sequence[Tensor]  # K masks (1, n_k), bool
    latents: Sequence[Tensor]  # after every scale, (1, C, h, w); of continuous tokens their maps

    def put(self, scale: int, found: Tensor, places: slice = slice(None)) -> Tensor:
        """Tokens of some places of a scale, (B, L) or (B, L, C), with the image's own where those stay."""
        own, stays = self.tokens[scale][:, places], self.stays[scale][:, places]
        return torch.where(stays if found.ndim == 2 else stays.unsqueeze(-1), own, found)

    def settle(self, scale: int, latent_BChw: Tensor) -> Tensor:
        """The latent after a scale, with the image's own where the finest tokens stay, or those of its own size."""
        side = latent_BChw.shape[-1]
        stays = self.stays[-1 if side == self.latents[-1].shape[-1] else scale]
        return torch.where(stays.unflatten(1, (1, side, side)), self.latents[scale], latent_BChw)


@torch.no_grad()
def kept_outside(mask_hw: Tensor, tokens: Sequence[Tensor], tokenizer: Tokenizer) -> Kept:
    """What stays when the true cells of the finest map are drawn anew, and of coarser maps the cells that match them.

    As published, a token stays if more than half of it does, judged by bilinear interpolation, and a map of one token
    stays as it is, for it tells the look of the whole. Here it goes if nothing at all stays.
    """
    mask_hw = mask_hw.cpu()  # where half a cell is half a cell, whatever the device
    stays_11hw = 1 - mask_hw.float()[None, None]
    found = []
    for side in tokenizer.scales.patch_nums:
        stays = F.interpolate(stays_11hw, size=(side, side), mode="bilinear").flatten(1) > 0.5
        found.append((~mask_hw.all() | stays if side == 1 else stays).to(tokens[0].device))
    return Kept(tokens, found, tokenizer.pyramid.latents(tokens))


@torch.no_grad()
def kept_before(from_scale: int, tokens: Sequence[Tensor], tokenizer: Tokenizer) -> Kept:
    """What stays when all scales from one on are drawn anew: every map before it."""
    stays = [torch.full(own.shape[:2], k < from_scale, device=own.device) for k, own in enumerate(tokens)]
    return Kept(tokens, stays, tokenizer.pyramid.latents(tokens))


def require_scale(from_scale: int, scales: Scales) -> None:
    """ValueError unless an image of some scales can be drawn anew from one on."""
    if not isinstance(from_scale, int) or isinstance(from_scale, bool) or not 0 <= from_scale <= len(scales):
        raise ValueError(
            f"from_scale is {from_scale!r}; it must be from 0 (all is drawn anew) to {len(scales)}, the number of "
            "scales (all is kept)"
        )


def require_keeping(plan: Plan) -> None:
    """ValueError unless a plan can keep tokens of a given image."""
    if any(stage.speculation for stage in plan.stages):
        raise ValueError("speculation draws whole images and keeps nothing of a given one; leave speculate out")
