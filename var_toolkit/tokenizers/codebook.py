"""What tokenizers with a codebook share: an encoder, a quantiser and a decoder, most of them convolutional.

Images are float in [-1, 1], (B, 3, h, w). Letters: B images, C channels of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from var_toolkit.core.finite import clamped, require_finite, require_fit
from var_toolkit.core.schedule import Schedule
from var_toolkit.tokenizers.cnn import Decoder, Encoder


class Quantized(NamedTuple):
    """The result of a quantiser in training."""

    latent: Tensor  # (B, C, h, w), with straight-through gradients
    loss: Tensor
    tokens: list[Tensor]  # K maps (B, n_k), int64


class Reconstruction(NamedTuple):
    """The result of a training pass."""

    images: Tensor  # (B, 3, h, w), about [-1, 1]
    quantizer_loss: Tensor
    tokens: list[Tensor]  # K maps (B, n_k), int64


class CodebookTokenizer(nn.Module):
    """Images -> features -> tokens -> images. The quantiser's weights and sums are float32 whatever the other dtype.

    On CUDA its matrix products still follow torch's settings of float32 precision (TF32, off by default).
    """

    config: Any
    scales: Schedule
    encoder: Encoder
    decoder: Decoder
    quant_conv: nn.Conv2d
    post_quant_conv: nn.Conv2d
    quantize: Any

    @property
    def pyramid(self) -> Any:
        """Maps codes to latents, and latents to the inputs of the next scale; for the default schedule."""
        return self.pyramid_of(self.scales)

    def pyramid_of(self, schedule: Schedule) -> Any:
        """The pyramid of a schedule. ValueError for one that the tokenizer was not made for."""
        if schedule != self.scales:
            raise ValueError(f"the tokenizer has the schedule {self.scales}; it cannot code {schedule}")
        return self.quantize

    @property
    def channels(self) -> int:
        """Number of channels of the latents."""
        return self.post_quant_conv.in_channels

    @property
    def image_side(self) -> int:
        """Height and width, in pixels, of the images that this tokenizer encodes and decodes by default."""
        return int(self.scales.finest * self.config.downsample)

    @property
    def latent_side(self) -> int:
        """Height and width of the latents of these images."""
        return self.scales.finest

    @property
    def downsample(self) -> int:
        """Pixels per token of the finest map along one side."""
        return int(self.config.downsample)

    @property
    def latent_pixels(self) -> int:
        """Pixels per latent position along one side."""
        return self.image_side // self.latent_side

    def place(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move in place. The quantiser stays in float32, since its sums and nearest-code search need the precision.

        ValueError, before anything is moved, if weights would become infinite in the dtype.
        """
        moved = {name: part for name, part in self.named_children() if part is not self.quantize}
        for name, part in moved.items():
            require_fit(part.state_dict(), dtype, f"tokenizer {name}")
        self.quantize.to(device=device)
        for part in moved.values():
            part.to(device=device, dtype=dtype)
        return self

    def features(self, images: Tensor, schedule: Schedule | None = None) -> Tensor:
        """The latent before quantisation, (B, C, h, w). ValueError for images of another size than the schedule's."""
        height, width = (schedule or self.scales).image_size(self.downsample)
        if images.shape[1:] != (3, height, width):
            raise ValueError(f"images have shape {tuple(images.shape)}; this tokenizer takes (B, 3, {height}, {width})")
        return self._encoded(images)

    def _encoded(self, images: Tensor) -> Tensor:
        images = images.to(self.quant_conv.weight.dtype, memory_format=torch.channels_last)
        return self.quant_conv(self.encoder(images))

    def forward(self, images: Tensor) -> Reconstruction:
        """Reconstruct for training, with gradients through the straight-through estimator.

        Under autocast the quantiser stays in float32, as published: half precision changes many nearest codes.
        """
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):
            quantized = self.quantize(features)
        return Reconstruction(self._decode_latent(quantized.latent), quantized.loss, quantized.tokens)

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        """Images -> K token maps (B, n_k), int64."""
        return self._quantized(self.features(images), self.scales)

    def _quantized(self, features_BChw: Tensor, schedule: Schedule) -> list[Tensor]:
        with torch.autocast(features_BChw.device.type, enabled=False):
            found: list[Tensor] = self.pyramid_of(schedule).encode(features_BChw)
            return found

    @torch.no_grad()
    def token_maps(self, images: Tensor, schedule: Schedule | None = None) -> list[Tensor]:
        """Images -> the K token maps of a schedule that a backbone predicts: by default those of `encode`.

        FloatingPointError if the encoder overflows. The host waits for the result.
        """
        features = require_finite(self.features(images, schedule), "the encoder's features")
        return self._quantized(features, schedule or self.scales)

    @torch.no_grad()
    def latents(self, tokens: list[Tensor]) -> list[Tensor]:
        """The latent after every given scale, each (B, C, h, w). Any of them can be decoded as a preview."""
        found: list[Tensor] = self.pyramid.latents(tokens)
        return found

    @torch.no_grad()
    def teacher_inputs(self, tokens: Sequence[Tensor]) -> Tensor:
        """Inputs of scales 1 .. K-1 under teacher forcing, (B, L - n_0, C), float32."""
        found: Tensor = self.pyramid.teacher_inputs(tokens).float()
        return found

    @torch.no_grad()
    def decode(self, latent_BChw: Tensor) -> Tensor:
        """The latent after any scale -> images in [-1, 1], float32 (B, 3, h, w); NaN where the decoder overflows."""
        return clamped(self._decode_latent(latent_BChw).float())

    def coded(self, images: Tensor) -> Tensor:
        """The latent of images that `decode` reconstructs them from, (B, C, h, w), float32."""
        return self.latents(self.token_maps(images))[-1]

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images; the result is in [-1, 1], float32 (B, 3, h, w)."""
        return self.decode(self.coded(images))

    def _decode_latent(self, latent_BChw: Tensor) -> Tensor:
        latent_BChw = latent_BChw.to(self.post_quant_conv.weight.dtype, memory_format=torch.channels_last)
        return self.decoder(self.post_quant_conv(latent_BChw))
