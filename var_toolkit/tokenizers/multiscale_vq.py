"""The multi-scale VQ tokenizer of VAR (arXiv 2404.02905, section 3.2), key-compatible with `vae_ch160v4096z32.pth`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from var_toolkit.scales import SCHEDULES, Scales
from var_toolkit.tokenizers.cnn import Decoder, Encoder, to_channels_last
from var_toolkit.tokenizers.residual_quantizer import ResidualQuantizer


@dataclass(frozen=True)
class MultiScaleVQConfig:
    """Sizes of the tokenizer; the defaults are the published ones."""

    vocab_size: int = 4096
    z_channels: int = 32
    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    patch_nums: tuple[int, ...] = SCHEDULES["256"]
    share_quant_resi: int = 4
    quant_resi: float = 0.5
    beta: float = 0.25
    using_znorm: bool = False
    quant_conv_ks: int = 3
    norm_groups: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "ch_mult", tuple(self.ch_mult))
        object.__setattr__(self, "patch_nums", Scales(tuple(self.patch_nums)).patch_nums)
        for name in ("vocab_size", "z_channels", "ch", "num_res_blocks", "quant_conv_ks", "norm_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if self.share_quant_resi < 0:
            raise ValueError(f"share_quant_resi is {self.share_quant_resi}; it must be 0 (one phi a scale) or more")

        if any(self.ch * m % self.norm_groups for m in self.ch_mult):
            raise ValueError(
                f"norm_groups is {self.norm_groups}; it must divide ch * ch_mult, {self.ch} * {self.ch_mult}"
            )

    @property
    def downsample(self) -> int:
        """Pixels per latent position along one side."""
        return 2 ** (len(self.ch_mult) - 1)


class Reconstruction(NamedTuple):
    """What a training pass returns."""

    pictures: Tensor  # (B, 3, h, w), about [-1, 1]
    quantizer_loss: Tensor
    tokens: list[Tensor]  # K maps (B, n_k), int64


class MultiScaleVQ(nn.Module):
    """Pictures to a pyramid of token maps and back. Pictures are float in [-1, 1], (B, 3, h, w)."""

    def __init__(self, config: MultiScaleVQConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = Scales(config.patch_nums)
        shape = (config.ch, config.ch_mult, config.num_res_blocks, config.z_channels, config.norm_groups)
        self.encoder, self.decoder = Encoder(*shape), Decoder(*shape)
        self.quantize = ResidualQuantizer(
            self.scales,
            vocab_size=config.vocab_size,
            channels=config.z_channels,
            share_quant_resi=config.share_quant_resi,
            quant_resi=config.quant_resi,
            beta=config.beta,
            using_znorm=config.using_znorm,
        )
        kernel = config.quant_conv_ks
        self.quant_conv = nn.Conv2d(config.z_channels, config.z_channels, kernel, padding=kernel // 2)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, kernel, padding=kernel // 2)
        to_channels_last(self)

    @property
    def pyramid(self) -> ResidualQuantizer:
        """How codes become a latent, and what of it the next scale sees."""
        return self.quantize

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.config.z_channels

    def meaning(self) -> dict[str, Tensor]:
        """What decides what a token stands for: the codebook and the phis."""
        tensors = self.quantize.state_dict().items()
        return {name: tensor for name, tensor in tensors if name.startswith(("embedding", "quant_resi"))}

    @property
    def picture_side(self) -> int:
        """Height and width, in pixels, of the pictures this tokenizer reads and draws."""
        return self.scales.finest * self.config.downsample

    def place(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> MultiScaleVQ:
        """Move in place; the quantiser stays in float32, since sums over the scales lose too much in less."""
        self.to(device=device, dtype=dtype)
        self.quantize.float()
        return self

    def features(self, pictures: Tensor) -> Tensor:
        """The latent before quantisation, (B, z_channels, h, w)."""
        side = self.picture_side
        if pictures.shape[1:] != (3, side, side):
            raise ValueError(
                f"pictures have shape {tuple(pictures.shape)}; this tokenizer reads (B, 3, {side}, {side})"
            )
        pictures = pictures.to(self.quant_conv.weight.dtype, memory_format=torch.channels_last)
        return self.quant_conv(self.encoder(pictures))

    def forward(self, pictures: Tensor) -> Reconstruction:
        """Reconstruct for training, with gradients through the straight-through estimator.

        Under autocast the quantiser stays in float32, as published: half precision moves many a nearest code.
        """
        features = self.features(pictures)
        with torch.autocast(features.device.type, enabled=False):
            quantized = self.quantize(features)
        return Reconstruction(self._draw(quantized.latent), quantized.loss, quantized.tokens)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> list[Tensor]:
        """Pictures -> K token maps (B, n_k), int64."""
        features = self.features(pictures)
        with torch.autocast(features.device.type, enabled=False):
            return self.quantize.encode(features)

    @torch.no_grad()
    def teacher_inputs(self, tokens: Sequence[Tensor]) -> Tensor:
        """Inputs of scales 1 .. K-1 under teacher forcing, (B, L - n_0, z_channels), float32."""
        return self.quantize.teacher_inputs(tokens).float()

    @torch.no_grad()
    def latents(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The latent after every given scale, each (B, z_channels, h, w): decode any of them for a preview."""
        return self.quantize.latents(tokens)

    @torch.no_grad()
    def decode(self, latent_BChw: Tensor) -> Tensor:
        """A latent, after the last scale or any other, -> pictures in [-1, 1], float32 (B, 3, h, w)."""
        return self._draw(latent_BChw).float().clamp_(-1, 1)

    def reconstruct(self, pictures: Tensor) -> Tensor:
        """What the tokenizer keeps of the pictures, in [-1, 1]."""
        return self.decode(self.latents(self.encode(pictures))[-1])

    def _draw(self, latent_BChw: Tensor) -> Tensor:
        latent_BChw = latent_BChw.to(self.post_quant_conv.weight.dtype, memory_format=torch.channels_last)
        return self.decoder(self.post_quant_conv(latent_BChw))
