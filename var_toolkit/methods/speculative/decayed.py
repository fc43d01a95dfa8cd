"""Cool-SD: accepts the first drafts of a window more easily than the later ones.

Letters: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from var_toolkit.methods.speculative.rules import OneByOne, at, ratio
from var_toolkit.ranges import checked


@dataclass(frozen=True)
class Decayed(OneByOne):
    """Accepts with probability min(1, w p / q), w = max(1, `boost` exp(-`decay` i)), for the i-th draft of a window.

    The residual is that of the standard rule, the best choice for any probability that is not smaller than its own.
    """

    boost: float = 1.1
    decay: float = 0.7

    def __post_init__(self) -> None:
        object.__setattr__(self, "boost", checked("boost", self.boost))
        object.__setattr__(self, "decay", checked("decay", self.decay))

    def probability(self, p: Tensor, q: Tensor | None, token: Tensor, depth: Tensor) -> Tensor:
        weight = (self.boost * torch.exp(-self.decay * depth.to(p.dtype))).clamp(min=1.0)
        return ratio(weight * at(p, token), at(q, token))

    def __str__(self) -> str:
        return f"decayed acceptance, boost {self.boost}, decay {self.decay}"
