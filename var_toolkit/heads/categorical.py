"""The categorical head: logits over a codebook, guided, filtered, and drawn from; and the loss that trains them.

Letters: B images, R rows (B, or 2B under guidance: conditional half first), L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.core.filters import filter_top_k_top_p, guide, pick, pick_several, soft_codes
from var_toolkit.core.noise import Stream
from var_toolkit.heads.head import Drawn, Head, Setting
from var_toolkit.ranges import checked, flag


@dataclass(frozen=True)
class Categorical(Head):
    """How codes are drawn.

    The filters act before the temperature, as published for VAR and CoDe, or with `temperature_first` after it, as
    published for LlamaGen. `smooth` mixes codes instead of drawing one (`core.filters.soft_codes`).
    """

    top_k: int = 0
    top_p: float = 0.0
    temperature: float = 1.0
    smooth: bool = False
    temperature_first: bool = False

    def __post_init__(self) -> None:
        for name in ("top_k", "top_p", "temperature"):
            object.__setattr__(self, name, checked(name, getattr(self, name)))
        for name in ("smooth", "temperature_first"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))

    def filtered(self, logits_BLV: Tensor) -> Tensor:
        """Guided logits -> what the tokens are drawn from; still without the temperature, unless it comes first."""
        if self.temperature_first and self.temperature != 1:
            logits_BLV = logits_BLV / self.temperature
        return filter_top_k_top_p(logits_BLV, top_k=self.top_k, top_p=self.top_p)

    def probabilities(self, filtered_BLV: Tensor) -> Tensor:
        """What the tokens are drawn from, from `filtered`, (B, L, V)."""
        tempered = self.temperature_first or self.temperature == 1
        return (filtered_BLV if tempered else filtered_BLV / self.temperature).softmax(-1)

    def draw(self, hidden_RLC: Tensor, at: Setting) -> Drawn:
        """The tokens of some features, from the noise of their positions."""
        logits = self.choices(at.network.logits(at.condition, hidden_RLC), at)
        tokens = self.picker(at, at.first, at.count)(logits, 0)
        if not self.smooth:
            return Drawn(tokens, None, logits)
        gumbel = at.noise.gumbel(Stream.SMOOTH, at.first, at.count, logits.shape[-1])
        return Drawn(tokens, soft_codes(logits, gumbel, at.pyramid.codebook(), progress=at.progress), logits)

    def draw_candidates(self, hidden_RLC: Tensor, at: Setting, count: int) -> Drawn:
        """As of any head; the logits are computed and filtered once for all candidates of an image."""
        if self.smooth:
            return super().draw_candidates(hidden_RLC, at, count)
        logits = self.choices(at.network.logits(at.condition, hidden_RLC), at)
        uniform = at.noise.candidates(count).uniform(Stream.TOKEN, at.first, at.count).view(-1, count, at.count)
        tokens_BLM = pick_several(self.probabilities(logits), uniform.transpose(1, 2).contiguous())
        return Drawn(tokens_BLM.transpose(1, 2).flatten(0, 1), None, logits)

    def computations(self, candidates: int) -> int:
        return candidates if self.smooth else 1

    def picker(self, at: Setting, first: int, count: int) -> Callable[[Tensor, int], Tensor]:
        """What draws tokens from `filtered` logits: those of a position, of `count` from `first` on, and after it."""
        uniform_BL = at.noise.uniform(Stream.TOKEN, first, count)

        def picked(filtered_BLV: Tensor, position: int) -> Tensor:
            return pick(self.probabilities(filtered_BLV), uniform_BL[:, position : position + filtered_BLV.shape[1]])

        return picked

    def choices(self, logits_RLV: Tensor, at: Setting, what: str = "") -> Tensor:
        """Logits of the rows -> those of the images, guided and filtered. `what` names the logits where several are."""
        logits = guided_logits(logits_RLV, at.guidance) if at.guided else logits_RLV
        at.note(logits, what or f"the logits of scale {at.scale}", at.guidance)
        return self.filtered(logits)

    def shown(self, guidance: float) -> list[str]:
        """The settings in words."""
        told = [f"top-k {self.top_k}", f"top-p {self.top_p:g}", f"temperature {self.temperature:g}"]
        return [*told, *(["smooth"] if self.smooth else [])]


def guided_logits(logits_RLV: Tensor, guidance: float) -> Tensor:
    """The logits of images from rows of which the second half is null."""
    return guide(logits_RLV, guidance) if guidance > 0 else logits_RLV.chunk(2)[0]


def token_losses(logits_BLV: Tensor, tokens_BL: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of every token, (B, L)."""
    # Flat, because a softmax over an inner dimension is several times slower.
    flat = F.cross_entropy(
        logits_BLV.flatten(0, 1), tokens_BL.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    return flat.view_as(tokens_BL)


def only(code_BL: Tensor, logits_BLV: Tensor, where_BL: Tensor) -> Tensor:
    """The logits, with all codes but one excluded at some positions: tokens that are given, not drawn."""
    given = torch.full_like(logits_BLV, -torch.inf).scatter(-1, code_BL.unsqueeze(-1), 0.0)
    return torch.where(where_BL.unsqueeze(-1), given, logits_BLV)
