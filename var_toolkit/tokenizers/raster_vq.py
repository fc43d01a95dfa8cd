"""The VQ tokenizer of LlamaGen (arXiv 2406.06525, section 2.1): one token map, quantised by cosine similarity.

Letters: B images, L tokens, V vocabulary, C channels of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.schedule import Scales
from var_toolkit.tokenizers.cnn import Decoder, Encoder, to_channels_last
from var_toolkit.tokenizers.codebook import CodebookTokenizer, Quantized


@dataclass(frozen=True)
class RasterVQConfig:
    """Sizes of the tokenizer; the defaults are those of VQ-16 at 256 px."""

    vocab_size: int = 16384
    code_dim: int = 8
    z_channels: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    side: int = 16  # of the token map
    beta: float = 0.25
    norm_groups: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "ch_mult", tuple(self.ch_mult))
        for name in ("vocab_size", "code_dim", "z_channels", "ch", "num_res_blocks", "side", "norm_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")
        if not self.ch_mult or any(self.ch * m % self.norm_groups for m in self.ch_mult):
            raise ValueError(
                f"norm_groups is {self.norm_groups}; it must divide ch * ch_mult, {self.ch} * {self.ch_mult}"
            )

    @property
    def downsample(self) -> int:
        """Pixels per token along one side."""
        return 2 ** (len(self.ch_mult) - 1)


class CosineQuantizer(nn.Module):
    """A codebook on the unit sphere: features and codes are L2-normalised; the nearest code has the largest cosine."""

    def __init__(self, vocab_size: int, channels: int, beta: float) -> None:
        super().__init__()
        self.beta = beta
        # Not nn.Embedding(n, c): its initialisation imports torch.compile on the meta device. Training sets it.
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(vocab_size, channels), freeze=False)

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """Token ids -> codes of unit length (B, L, C)."""
        return F.normalize(self.embedding(tokens_BL), dim=-1)

    def nearest(self, target_BLC: Tensor) -> Tensor:
        """The tokens whose codes have the largest cosine with the given vectors, (B, L)."""
        codes_VC = F.normalize(self.embedding.weight.detach(), dim=-1)
        return (F.normalize(target_BLC, dim=-1) @ codes_VC.T).argmax(dim=-1)

    def targets_and_errors(self, features_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors to quantise (N, C) and their squared distances to the nearest codes (N,)."""
        target = F.normalize(_sequence(features_BChw), dim=-1)
        return target.flatten(0, 1), (target - self.embed(self.nearest(target))).square().sum(-1).flatten()

    def encode(self, features_BChw: Tensor) -> list[Tensor]:
        """Features -> a list of the single token map (B, L), in raster order."""
        return [self.nearest(_sequence(features_BChw.float()))]

    def latents(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """A list of the latent of the single map, (B, C, h, w)."""
        return [self.grow(None, self.embed(tokens[0]), 0)]

    def grow(self, latent: Tensor | None, codes_BLC: Tensor, scale: int) -> Tensor:
        """The latent of the only scale, (B, C, h, w)."""
        side = round(codes_BLC.shape[1] ** 0.5)
        return codes_BLC.transpose(1, 2).unflatten(2, (side, side))

    def forward(self, features_BChw: Tensor) -> Quantized:
        """Quantise for training: straight-through latent, loss and tokens, in float32."""
        target = F.normalize(_sequence(features_BChw.float()), dim=-1)
        tokens_BL = self.nearest(target)
        codes = self.embed(tokens_BL)
        loss = F.mse_loss(codes, target.detach()) + self.beta * F.mse_loss(codes.detach(), target)
        straight = target + (codes - target).detach()
        return Quantized(self.grow(None, straight, 0), loss, [tokens_BL])


class RasterVQ(CodebookTokenizer):
    """Images to one token map and back. Images are float in [-1, 1], (B, 3, h, w)."""

    def __init__(self, config: RasterVQConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = Scales((config.side,))
        shape = (config.ch, config.ch_mult, config.num_res_blocks, config.z_channels, config.norm_groups)
        self.encoder, self.decoder = Encoder(*shape), Decoder(*shape)
        self.quantize = CosineQuantizer(config.vocab_size, config.code_dim, config.beta)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)
        to_channels_last(self)

    def meaning(self) -> dict[str, Tensor]:
        """Tensors that identify the tokens: parts of models with equal ones can be combined."""
        return {"embedding": self.quantize.embedding.weight}

    def on_grid(self, side: int) -> RasterVQ:
        """The same weights for maps of another side; no weight depends on the side."""
        other = copy(self)
        other.config, other.scales = replace(self.config, side=side), Scales((side,))
        return other


def _sequence(latent_BChw: Tensor) -> Tensor:
    return latent_BChw.flatten(2).transpose(1, 2)
