"""Cool-SD: acceptance that is generous with the first drafts of a window and strict with the later ones.

Letters: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from var_toolkit.speculative.rules import OneByOne, at, ratio, residual


@dataclass(frozen=True)
class Decayed(OneByOne):
    """The probability is min(1, w p / q) with w = max(1, `boost` exp(-`decay` i)) for the i-th draft of a window.

    What is left is that of the standard rule, the best choice for any probability that is not smaller than its own.
    """

    boost: float
    decay: float = 0.7

    def __post_init__(self) -> None:
        if not 1 <= self.boost < float("inf"):
            raise ValueError(f"boost is {self.boost}; it must be 1 or more")
        if not 0 <= self.decay < float("inf"):
            raise ValueError(f"decay is {self.decay}; it must be 0 or more")

    def test(self, p: Tensor, q: Tensor | None, token: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        weight = (self.boost * torch.exp(-self.decay * depth.to(p.dtype))).clamp(min=1.0)
        return ratio(weight * at(p, token), at(q, token)), residual(p, q, token)

    def __str__(self) -> str:
        return f"decayed acceptance, boost {self.boost}, decay {self.decay}"
