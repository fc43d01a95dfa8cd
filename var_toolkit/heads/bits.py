"""The bits head of Infinity (arXiv 2412.04431, section 3.2): the bits of a token are independent of one another.

Two logits a bit, so a token of D bits needs 2 D of them where a codebook would need 2^D: channel 2j + v is value v of
bit j. Letters: B images, R rows (B, or 2B under guidance: conditional half first), L tokens, D bits of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.core.noise import Stream
from var_toolkit.heads.categorical import guided_logits
from var_toolkit.heads.head import Drawn, Head, Setting
from var_toolkit.ranges import checked


@dataclass(frozen=True)
class Bits(Head):
    """How bits are drawn.

    Logits are divided by the temperature (tau), then guided. `top_p` excludes the rarer value of a bit where its
    probability is at most 1 - top_p. Of the values of `top_k` only 1 has an effect: the likelier value is drawn.
    """

    top_k: int = 0
    top_p: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("top_k", "top_p", "temperature"):
            object.__setattr__(self, name, checked(name, getattr(self, name)))

    def choices(self, logits_RLV: Tensor, at: Setting) -> Tensor:
        """Logits of the rows, (R, L, 2 D) -> those of the images, (B, L, 2 D): tempered and guided."""
        logits = logits_RLV / self.temperature
        logits = guided_logits(logits, at.guidance) if at.guided else logits
        at.note(logits, f"the logits of scale {at.scale}", at.guidance)
        return logits

    def probabilities(self, logits_BLV: Tensor) -> Tensor:
        """The probability that each bit is 1, from `choices`, (B, L, D)."""
        odds_BLD = log_odds(logits_BLV)
        if self.top_k == 1:
            return (odds_BLD > 0).to(odds_BLD.dtype)
        ones_BLD = odds_BLD.sigmoid()
        if self.top_p > 0:
            ones_BLD = ones_BLD.masked_fill(ones_BLD <= 1 - self.top_p, 0.0)
            # The other value's probability is not 1 - p: that would lose its digits where p is close to 1.
            ones_BLD = ones_BLD.masked_fill((-odds_BLD).sigmoid() <= 1 - self.top_p, 1.0)
        return ones_BLD

    def draw(self, hidden_RLC: Tensor, at: Setting) -> Drawn:
        """The bits of some features, (B, L, D), uint8, each from noise of its own."""
        logits = self.choices(at.network.logits(at.condition, hidden_RLC), at)
        ones_BLD = self.probabilities(logits)
        uniform_BLD = at.noise.uniforms(Stream.TOKEN, at.first, at.count, ones_BLD.shape[-1])
        return Drawn((uniform_BLD < ones_BLD).to(torch.uint8), None, logits)

    def shown(self, guidance: float) -> list[str]:
        """The settings in words."""
        return [*(["greedy"] if self.top_k == 1 else []), f"top-p {self.top_p:g}", f"temperature {self.temperature:g}"]


def log_odds(logits_BLV: Tensor) -> Tensor:
    """The logit of each bit being 1 rather than 0, (B, L, D)."""
    zero, one = logits_BLV.unflatten(-1, (-1, 2)).unbind(-1)
    return one - zero


def bit_losses(logits_BLV: Tensor, bits_BLD: Tensor) -> Tensor:
    """Cross-entropy of every token, (B, L): the mean over its bits."""
    odds_BLD = log_odds(logits_BLV.float())
    return F.binary_cross_entropy_with_logits(odds_BLD, bits_BLD.to(odds_BLD.dtype), reduction="none").mean(-1)
