"""Continuous token maps of FlowAR (arXiv 2412.15205, section 3.2): one latent resized to several scales.

Letters: B images, L tokens, C channels, K scales, p the side of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.core.schedule import Schedule


class LatentPyramid:
    """Computes the maps of a latent, and the input of each scale from the previous map.

    A map is enlarged to `side` before it is resized to the next scale; default: the side of the finest scale, as in
    training. The published sampler uses 16 for every schedule. With a `patch` above 1, of MAR, the tokens of the only
    scale are patches of so many latent positions along a side: channel, then row, then column; of ACDiT, with
    `channel_last`, row, column, channel.
    """

    def __init__(
        self, scales: Schedule, side: int | None = None, patch: int = 1, *, channel_last: bool = False
    ) -> None:
        self.scales, self.side, self.patch, self.channel_last = scales, side or scales.finest, patch, channel_last

    def maps(self, latent_BChw: Tensor) -> Tensor:
        """The tokens of every scale, area-averaged from the finest, (B, L, C)."""
        latent_BChw = F.pixel_unshuffle(latent_BChw, self.patch)
        if self.channel_last:
            latent_BChw = latent_BChw.unflatten(1, (-1, self.patch**2)).transpose(1, 2).flatten(1, 2)
        return torch.cat([sequence(_averaged(latent_BChw, side)) for side in self.scales.patch_nums], dim=1)

    def teacher_inputs(self, latent_BChw: Tensor) -> Tensor:
        """Inputs of scales 1 .. K-1 under teacher forcing, (B, L - n_0, C)."""
        coarser = self.scales.patch_nums[:-1]
        inputs = [self.shrink(_averaged(latent_BChw, side), k + 1) for k, side in enumerate(coarser)]
        return torch.cat([sequence(latent_BChw)[:, :0], *inputs], dim=1)  # a single scale has no inputs

    def grow(self, latent: Tensor | None, codes_BLC: Tensor, scale: int) -> Tensor:
        """The latent after a scale, (B, C, p, p): its map, which replaces the previous one."""
        side = self.scales.patch_nums[scale]
        if self.channel_last:
            codes_BLC = codes_BLC.unflatten(2, (self.patch**2, -1)).transpose(2, 3).flatten(2, 3)
        return F.pixel_shuffle(codes_BLC.transpose(1, 2).unflatten(2, (side, side)), self.patch)

    def latents(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The latent after every given scale: its map, (B, C, p, p)."""
        return [self.grow(None, codes_BLC, k) for k, codes_BLC in enumerate(tokens)]

    def shrink(self, latent_BCpp: Tensor, scale: int) -> Tensor:
        """The input of a scale from the previous map, (B, n_k, C)."""
        grown = F.interpolate(latent_BCpp, size=(self.side, self.side), mode="bicubic")
        return sequence(_averaged(grown, self.scales.patch_nums[scale]))


def sequence(latent_BChw: Tensor) -> Tensor:
    """A map (B, C, h, w) -> tokens in raster order (B, h w, C)."""
    return latent_BChw.flatten(2).transpose(1, 2)


def _averaged(latent_BChw: Tensor, side: int) -> Tensor:
    return F.interpolate(latent_BChw, size=(side, side), mode="area")
