"""What every head offers: from features of a network to tokens.

Letters: B images, R rows (B, or 2B under guidance: conditional half first), L tokens, C width or channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from var_toolkit.core.noise import Noise
from var_toolkit.core.parts import Part


@dataclass(frozen=True)
class Setting:
    """The place of a draw in an image, as heads need it."""

    network: Any
    condition: Any  # of the network's rows
    scale: int
    first: int  # position of the first token in the pyramid
    count: int  # tokens
    progress: float  # of the scale, from 0 to 1
    guidance: float  # t in (1 + t) conditional - t null
    guided: bool  # whether the features have a null half
    pyramid: Any  # of the tokenizer
    noise: Noise
    note: Any  # function that records whether values are finite
    positions: Tensor | None = None  # (B, N): of a group of tokens, in the pyramid
    sketch: Any = None  # the map that they are of (`core.sketch.Sketch`)
    cache: Any = None  # of the network, of heads that are the whole network
    latent: Tensor | None = None  # (B, C, h, w), of the scales before; None at the first
    attempt: int = 0  # their first rank, of heads that draw the whole map again for each group
    place: str = ""  # in words


class Drawn(NamedTuple):
    """What a head has drawn."""

    tokens: Tensor  # (B, L), int64; continuous ones (B, L, C), float32
    codes: Tensor | None  # (B, L, C), if they are not those of the tokens
    logits: Tensor | None  # (B, L, V), of discrete tokens: what they were drawn from, before the temperature


class Head(Part):
    """How tokens are drawn from features. Its fields are the settings of drawing."""

    continuous = False  # whether the tokens are

    def is_guided(self, guidance: float) -> bool:
        """Whether guidance of this strength has an influence."""
        return guidance > 0

    def draw(self, hidden_RLC: Tensor, at: Setting) -> Drawn:
        """The tokens of some features."""
        raise NotImplementedError

    def draw_candidates(self, hidden_RLC: Tensor, at: Setting, count: int) -> Drawn:
        """`count` draws of each image from the same features, one image after another; the logits are of images."""
        rows = torch.arange(len(hidden_RLC), device=hidden_RLC.device).repeat_interleave(count)
        latent = None if at.latent is None else at.latent.repeat_interleave(count, dim=0)
        condition, noise = at.condition.of_rows(rows), at.noise.candidates(count)
        drawn = self.draw(hidden_RLC[rows], replace(at, condition=condition, noise=noise, latent=latent))
        return drawn._replace(logits=None if drawn.logits is None else drawn.logits[::count])

    def computations(self, candidates: int) -> int:
        """How often it computes for so many candidates."""
        return candidates

    def evaluations(self) -> int:
        """Evaluations of a head network for each draw, beyond the features; 0 if it has none."""
        return 0

    def rows(self, guidance: float, rows: int) -> int:
        """Rows that the head computes for each image and draw."""
        return rows

    def shown(self, guidance: float) -> list[str]:
        """The settings in words."""
        raise NotImplementedError
