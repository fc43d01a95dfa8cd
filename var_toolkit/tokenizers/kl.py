"""Continuous tokenizers: any AutoencoderKL of diffusers, such as KL-16 of MAR and FlowAR, used as a pyramid.

Letters: B images, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.finite import clamped, require_finite, require_fit
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.diffusers_config import quiet_import
from var_toolkit.tokenizers.latent_pyramid import LatentPyramid


@dataclass(frozen=True)
class KLConfig:
    """Sizes of a new autoencoder, under diffusers' names; the defaults are those of KL-16 (arXiv 2406.11838)."""

    block_out_channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_num_groups: int = 32
    sample_size: int = 256
    encoder_attention: bool = True  # at the coarsest encoder level, in addition to the middle block

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        for name in ("layers_per_block", "latent_channels", "norm_num_groups", "sample_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if not self.block_out_channels or any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ValueError(
                f"block_out_channels is {list(self.block_out_channels)}; "
                f"each must be a multiple of norm_num_groups, {self.norm_num_groups}"
            )
        if self.sample_size % 2 ** (len(self.block_out_channels) - 1):
            raise ValueError(
                f"sample_size is {self.sample_size}; it must be divisible by 2 at every level but the last"
            )

    def build(self, scaling_factor: float = 1.0) -> Any:
        """An AutoencoderKL of these sizes."""
        with quiet_import():
            from diffusers import AutoencoderKL

        levels = len(self.block_out_channels)
        last = "AttnDownEncoderBlock2D" if self.encoder_attention else "DownEncoderBlock2D"
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * (levels - 1) + (last,),
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=self.block_out_channels,
            layers_per_block=self.layers_per_block,
            latent_channels=self.latent_channels,
            norm_num_groups=self.norm_num_groups,
            sample_size=self.sample_size,
            scaling_factor=scaling_factor,
        )


class Reconstruction(NamedTuple):
    """The result of a training pass."""

    images: Tensor  # (B, 3, h, w), about [-1, 1]
    kl: Tensor  # divergence of the posteriors from a standard normal, nats per image


class KLTokenizer(nn.Module):
    """Images to latents and back. Images are float in [-1, 1], (B, 3, h, w); latents have a variance of about 1.

    `autoencoder` is an AutoencoderKL. Without `scales` the pyramid has a single scale, the latent of an image of
    `sample_size`; `side`, `patch` and `channel_last` are those of `LatentPyramid`.
    """

    def __init__(
        self,
        autoencoder: Any,
        scales: Schedule | None = None,
        side: int | None = None,
        patch: int = 1,
        *,
        channel_last: bool = False,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder.to(memory_format=torch.channels_last)
        self.patch = patch
        self.scales = scales or Schedule((autoencoder.config.sample_size // self.downsample,))
        self.pyramid = LatentPyramid(self.scales, side, patch, channel_last=channel_last)

    @property
    def channels(self) -> int:
        """Number of channels of the latents, C."""
        return int(self.autoencoder.config.latent_channels)

    def pyramid_of(self, schedule: Schedule) -> Any:
        """The pyramid of a schedule. ValueError unless it is its own."""
        if schedule != self.scales:
            raise ValueError(f"the tokenizer has the schedule {self.scales}; it cannot code {schedule}")
        return self.pyramid

    def meaning(self) -> dict[str, Tensor]:
        """Tensors that identify the latent space: parts of models with equal ones can be combined."""
        shift, factor = self._scaling(torch.device("cpu"))
        side = torch.tensor(self.pyramid.side)
        return {"shift": shift, "factor": factor, "side": side, "conv_in": self.autoencoder.decoder.conv_in.weight}

    @property
    def downsample(self) -> int:
        """Pixels per token along one side."""
        return self.patch * 2 ** (len(self.autoencoder.config.block_out_channels) - 1)

    @property
    def latent_pixels(self) -> int:
        """Pixels per latent position along one side."""
        return self.downsample // self.patch

    @property
    def image_side(self) -> int:
        """Height and width, in pixels, of the images that this tokenizer encodes and decodes."""
        return self.scales.finest * self.downsample

    def place(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> KLTokenizer:
        """Move in place. Autoencoders with `force_upcast` stay in float32 instead of float16."""
        upcast = dtype == torch.float16 and self.autoencoder.config.force_upcast
        require_fit(self.state_dict(), None if upcast else dtype, "tokenizer")
        self.to(device=device, dtype=torch.float32 if upcast else dtype)
        return self

    def moments(self, images: Tensor) -> Tensor:
        """Unscaled mean and log variance of the posteriors, (B, 2C, h, w). ValueError for images of another size."""
        side = self.image_side
        if images.shape[1:] != (3, side, side):
            raise ValueError(f"images have shape {tuple(images.shape)}; this tokenizer takes (B, 3, {side}, {side})")
        images = images.to(self.autoencoder.dtype, memory_format=torch.channels_last)
        return self.autoencoder.encode(images).latent_dist.parameters

    def latents(self, moments_B2Chw: Tensor, noise_BChw: Tensor | None = None) -> Tensor:
        """Scaled latents (B, C, h, w), float32: posterior samples if standard normal noise is given, else means."""
        mean, log_variance = moments_B2Chw.float().chunk(2, dim=1)
        if noise_BChw is not None:
            mean = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise_BChw
        shift, factor = self._scaling(mean.device)
        return (mean - shift) * factor

    def forward(self, images: Tensor) -> Reconstruction:
        """Sample the posteriors and reconstruct, for training."""
        posterior = self.autoencoder.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist
        return Reconstruction(self.autoencoder.decode(posterior.sample()).sample, posterior.kl())

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images -> scaled latents (B, C, h, w), float32: the means of their posteriors."""
        return self.latents(self.moments(images))

    def token_maps(self, images: Tensor, schedule: Schedule | None = None) -> list[Tensor]:
        """Images -> the K maps of continuous tokens that a backbone predicts, (B, n_k, C), float32.

        FloatingPointError if the encoder overflows. The host waits for the result. ValueError for another `schedule`
        than its own.
        """
        pyramid = self.pyramid_of(schedule or self.scales)
        return self.scales.split(pyramid.maps(require_finite(self.encode(images), "the encoder's latents")))

    @torch.no_grad()
    def decode(self, latent_BCpp: Tensor) -> Tensor:
        """A scaled latent -> images in [-1, 1], float32 (B, 3, h, w); NaN where the decoder overflows.

        Latents of coarser scales are enlarged first.
        """
        side = self.scales.finest * self.patch
        if latent_BCpp.shape[-1] != side:
            latent_BCpp = F.interpolate(latent_BCpp, size=(side, side), mode="bicubic")
        shift, factor = self._scaling(latent_BCpp.device)
        latent = latent_BCpp / factor + shift
        latent = latent.to(self.autoencoder.dtype, memory_format=torch.channels_last)
        return clamped(self.autoencoder.decode(latent).sample.float())

    def coded(self, images: Tensor) -> Tensor:
        """The latent of images that `decode` reconstructs them from: that of `encode`."""
        return self.encode(images)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images; the result is in [-1, 1], float32 (B, 3, h, w)."""
        return self.decode(self.coded(images))

    def _scaling(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Shift to subtract from latents and factor to multiply by, scalar or per channel."""
        config = self.autoencoder.config
        shift = torch.tensor(config.latents_mean or [config.shift_factor or 0.0], device=device)
        spread = torch.tensor(config.latents_std or [1.0], device=device)
        return shift.view(-1, 1, 1), config.scaling_factor / spread.view(-1, 1, 1)


NETWORKS = {"AutoencoderKL": "tokenizer"}  # a class of diffusers
MODELS = {
    "stilllife-kl": {
        "summary": "continuous tokenizer of still lifes, 8 x 8 x 8",
        "embedded": {"tokenizer": "stilllife-kl"},
    },
}  # fmt: skip
