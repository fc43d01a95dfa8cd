"""A small decoder: what a tokenizer's own decoder makes of a latent, in a small part of the time.

After TAESD (github.com/madebyollin/taesd), whose idea it is to distil such a decoder; the layers are ours, with few
weights at each resolution and the last enlargement by pixels instead of features. It is a network of its own and knows
the tokenizer that it was distilled from. Letters: B images, C channels, h and w of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from math import isclose
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.finite import clamped
from var_toolkit.tokenizers.cnn import to_channels_last

MARKS = 3  # values of each tensor of a tokenizer by which it is known again
ROUNDING = 1e-2  # relative, of these values in half precision


@dataclass(frozen=True)
class SmallDecoderConfig:
    """Sizes, by default for a tokenizer as VAR's; training fills in `tokenizer` and `marks`.

    Each resolution has its number of channels and of blocks, from that of the latent on, and each is half of the next.
    """

    latent_channels: int = 32
    widths: tuple[int, ...] = (64, 64, 48, 32)
    blocks: tuple[int, ...] = field(default=(2, 1, 1, 1), metadata={"range": (0, 100)})
    tokenizer: str = ""  # the name of that whose latents it decodes
    marks: tuple[float, ...] = field(default=(), metadata={"least": 0, "most": 1000})  # see `marks_of`

    def __post_init__(self) -> None:
        for name in ("widths", "blocks", "marks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.blocks) != len(self.widths):
            widths, blocks = list(self.widths), list(self.blocks)
            raise ValueError(f"blocks is {blocks}; expected a number for each of widths, {widths}")

    @property
    def latent_pixels(self) -> int:
        """Pixels per latent position along one side."""
        return 2 ** len(self.widths)

    @property
    def latents(self) -> str:
        """The latents that it is for, in words."""
        return latents_of(self.latent_channels, self.latent_pixels)


class SmallDecoder(nn.Module):
    """Latents (B, C, h, w), as the tokenizer's `decode` takes them -> images, about [-1, 1], (B, 3, h', w')."""

    def __init__(self, config: SmallDecoderConfig) -> None:
        super().__init__()
        self.config, widths = config, config.widths
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            nn.Sequential(*(Block(width) for _ in range(count)))
            for width, count in zip(widths, config.blocks, strict=True)
        )
        self.enlarge = nn.ModuleList(nn.Conv2d(width, 4 * after, 1) for width, after in pairwise(widths))
        self.conv_out = nn.Conv2d(widths[-1], 4 * 3, 3, padding=1)
        to_channels_last(self)

    def forward(self, latent_BChw: Tensor) -> Tensor:
        latent = latent_BChw.to(self.conv_in.weight.dtype, memory_format=torch.channels_last)
        h = F.relu(self.conv_in(latent))
        for level, enlarge in zip(self.levels, [*self.enlarge, self.conv_out], strict=True):
            h = F.pixel_shuffle(enlarge(level(h)), 2)
        return h

    @torch.no_grad()
    def decode(self, latent_BChw: Tensor) -> Tensor:
        """Latents -> images in [-1, 1], float32 (B, 3, h', w'); NaN where the decoder overflows."""
        return clamped(self(latent_BChw).float())

    def require_tokenizer(self, tokenizer: Any, source: str) -> None:
        """ValueError in one line for another tokenizer than the decoder was distilled from; `source` names it there.

        Of a tokenizer without weights only the sizes are compared.
        """
        config = self.config
        ours, theirs = config.latents, latents_of(tokenizer.channels, tokenizer.latent_pixels)
        if ours != theirs:
            raise ValueError(
                f"decoder {source} is for {config.tokenizer}, with latents of {ours}; this model's have {theirs}: "
                "leave it out, or train one"
            )
        marks = marks_of(tokenizer)
        alike = len(marks) == len(config.marks) and all(
            isclose(one, other, rel_tol=ROUNDING, abs_tol=1e-6) for one, other in zip(marks, config.marks, strict=True)
        )
        if marks and not alike:
            raise ValueError(
                f"decoder {source} was distilled from {config.tokenizer}; this model has another tokenizer of the same "
                "sizes: leave it out, or train one"
            )


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


def latents_of(channels: int, pixels: int) -> str:
    """Latents of some sizes, in words."""
    return f"{channels} channels for {pixels} x {pixels} pixels"


def marks_of(tokenizer: Any) -> tuple[float, ...]:
    """The first values of each tensor that identifies a tokenizer's latents; none of one without weights."""
    tensors = list(tokenizer.meaning().values())
    if any(tensor.is_meta for tensor in tensors):
        return ()
    return tuple(round(value, 6) for one in tensors for value in one.detach().float().flatten()[:MARKS].tolist())


NETWORKS = {"SmallDecoder": "decoder"}
MODELS = {
    "stilllife-tokenizer-small-decoder": {
        "summary": "small decoder for stilllife-tokenizer",
        "embedded": {"decoder": "stilllife-tokenizer-small-decoder"},
    },
}  # fmt: skip
