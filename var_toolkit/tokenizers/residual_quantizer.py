"""Multi-scale residual vector quantisation (VAR, arXiv 2404.02905, algorithms 1 and 2).

A latent is the sum over scales of phi_k(up(E[tokens_k])): each scale quantises the residual of the coarser ones.
Letters: B images, L tokens, V vocabulary, C latent channels, h and w of the finest map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.schedule import Schedule
from var_toolkit.tokenizers.codebook import Quantized


class Phi(nn.Conv2d):
    """Residual convolution that corrects the blur of upsampling: (1 - r) h + r conv(h)."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.ratio = abs(ratio)

    def forward(self, h_BChw: Tensor) -> Tensor:
        return h_BChw * (1 - self.ratio) + super().forward(h_BChw) * self.ratio


class _PartlyShared(nn.Module):
    def __init__(self, phis: Iterable[nn.Module]) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(phis)


class _Shared(nn.Module):
    def __init__(self, phi: nn.Module) -> None:
        super().__init__()
        self.qresi = phi


def phi_choice(scales: Schedule, count: int) -> list[int]:
    """Which of `count` phis serves each scale: the nearest of evenly spaced ticks.

    Exact ties (scales 2 and 7 of the 256 px schedule) are decided by float64 rounding in the published code, so the
    ticks must come from numpy.
    """
    margin = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(margin, 1 - margin, count)
    return [int(np.argmin(np.abs(ticks - scales.progress(k)))) for k in range(len(scales))]


class ResidualQuantizer(nn.Module):
    """The codebook, the phis and the loop over the scales.

    `share_quant_resi`: 0 is one phi per scale, 1 is one for all scales, n > 1 is n phis shared by the scales.
    """

    residual = True  # the maps add up, so that the last may be left out

    ema_vocab_hit_SV: Tensor  # noqa: N815

    def __init__(
        self,
        scales: Schedule,
        *,
        vocab_size: int,
        channels: int,
        share_quant_resi: int,
        quant_resi: float,
        beta: float,
        using_znorm: bool,
    ) -> None:
        super().__init__()
        self.scales, self.beta, self.using_znorm = scales, beta, using_znorm
        # Not nn.Embedding(n, c): its initialisation imports torch.compile on the meta device. Training sets it.
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(vocab_size, channels), freeze=False)
        count = share_quant_resi or len(scales)
        phis = [Phi(channels, quant_resi) if abs(quant_resi) > 1e-6 else nn.Identity() for _ in range(count)]
        self.quant_resi: nn.Module
        if share_quant_resi == 0:
            self.quant_resi = nn.ModuleList(phis)
        else:
            self.quant_resi = _Shared(phis[0]) if share_quant_resi == 1 else _PartlyShared(phis)
        chosen = phi_choice(scales, count)
        self._phi_of_scale = [phis[i] for i in chosen]  # a plain list: the modules are registered above, once
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(scales), vocab_size))

    def codebook(self) -> Tensor:
        """All codes, (V, C)."""
        return self.embedding.weight.detach()

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """Token ids of one scale -> codes (B, n_k, C)."""
        return self.embedding(tokens_BL)

    def contribution(self, codes_BLC: Tensor, scale: int) -> Tensor:
        """The contribution of the codes of one scale to the latent, (B, C, h, w)."""
        side = self.scales.patch_nums[scale]
        h_BChw = codes_BLC.transpose(1, 2).unflatten(2, (side, side))
        if side != self.scales.finest:
            h_BChw = F.interpolate(h_BChw, size=(self.scales.finest,) * 2, mode="bicubic")
        return self._phi_of_scale[scale](h_BChw)

    def grow(self, latent: Tensor | None, codes_BLC: Tensor, scale: int) -> Tensor:
        """The latent after a scale, (B, C, h, w): the sum of all contributions so far."""
        added = self.contribution(codes_BLC, scale)
        return added if latent is None else latent + added

    def shrink(self, latent_BChw: Tensor, scale: int) -> Tensor:
        """The latent area-averaged to the size of a scale, as a sequence (B, n_k, C)."""
        side = self.scales.patch_nums[scale]
        if side != self.scales.finest:
            latent_BChw = F.interpolate(latent_BChw, size=(side, side), mode="area")
        return latent_BChw.flatten(2).transpose(1, 2)

    def nearest(self, codes_BLC: Tensor) -> Tensor:
        """The token whose code is nearest: squared L2 distance, or largest cosine with `using_znorm`. (B, n_k)."""
        codebook_VC = self.codebook()
        rows_NC = codes_BLC.reshape(-1, codes_BLC.shape[-1])
        if self.using_znorm:
            found = (F.normalize(rows_NC, dim=-1) @ F.normalize(codebook_VC, dim=-1).T).argmax(dim=1)
        else:
            distance_NV = rows_NC.square().sum(1, keepdim=True) + codebook_VC.square().sum(1)
            found = distance_NV.addmm_(rows_NC, codebook_VC.T, alpha=-2).argmin(dim=1)
        return found.view(codes_BLC.shape[:2])

    def targets_and_errors(self, features_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """The residuals that all scales quantise (N, C) and their squared distances to the nearest codes (N,)."""
        rest, vectors, errors = features_BChw, [], []
        for scale in range(len(self.scales)):
            target = self.shrink(rest, scale)
            codes = self.embed(self.nearest(target))
            rest = rest - self.contribution(codes, scale)
            vectors.append(target.flatten(0, 1))
            errors.append((target - codes).square().sum(-1).flatten())
        return torch.cat(vectors), torch.cat(errors)

    @torch.no_grad()
    def encode(self, features_BChw: Tensor) -> list[Tensor]:
        """Features -> K token maps (B, n_k), int64."""
        rest = features_BChw.float()
        tokens = []
        for k in range(len(self.scales)):
            found = self.nearest(self.shrink(rest, k))
            rest = rest - self.contribution(self.embed(found), k)
            tokens.append(found)
        return tokens

    def latents(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The cumulative latent after every given scale, each (B, C, h, w)."""
        latent, after = None, []
        for k, tokens_BL in enumerate(tokens):
            latent = self.grow(latent, self.embed(tokens_BL), k)
            after.append(latent)
        return after

    def teacher_inputs(self, tokens: Sequence[Tensor]) -> Tensor:
        """Inputs of scales 1 .. K-1 under teacher forcing, (B, L - n_0, C), float32.

        The input of scale k is the downsampled latent after scale k-1; it never depends on tokens of scale k or finer.
        """
        latents = self.latents(tokens[: len(self.scales) - 1])
        return torch.cat([self.shrink(latent, k + 1) for k, latent in enumerate(latents)], dim=1)

    def forward(self, features_BChw: Tensor) -> Quantized:
        """Quantise for training: straight-through latent, loss and tokens.

        The loss compares the *cumulative* latent after every scale with the features, in float32:
        mean_k [ MSE(latent_k, sg f) + beta MSE(sg latent_k, f) ].
        """
        features = features_BChw.float()
        target = features.detach()
        latent, loss, tokens = torch.zeros_like(target), features.new_zeros(()), []
        for k in range(len(self.scales)):
            found = self.nearest(self.shrink(target - latent.detach(), k))
            latent = latent + self.contribution(self.embed(found), k)
            loss = loss + F.mse_loss(latent, target) + self.beta * F.mse_loss(latent.detach(), features)
            tokens.append(found)
        return Quantized((latent.detach() - target) + features, loss / len(self.scales), tokens)
