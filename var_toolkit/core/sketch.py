"""A map that is drawn in groups: which of its tokens are known so far.

Letters: B images, L tokens of the map, N tokens of a group, c channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from var_toolkit.core.noise import Noise
from var_toolkit.core.preserved import Preserved
from var_toolkit.core.schedule import Schedule


@dataclass
class Sketch:
    """Tokens of one map, in an order of each image."""

    order_BL: Tensor  # noqa: N815  # position of each rank, int64
    tokens_BLc: Tensor  # noqa: N815  # by position, float32; 0 where unknown
    known: int  # how many, from the first rank on

    @classmethod
    def begun(cls, network: Any, schedule: Schedule, scale: int, noise: Noise, preserved: Preserved | None) -> Sketch:
        """A map of which only what is preserved is known.

        Networks that preserve tokens "first" take them as drawn before all others; those that have them "written over"
        draw them, too. ValueError for a network that does neither.
        """
        order_BL = network.order(schedule, scale, noise)
        tokens_BLc = torch.zeros(*order_BL.shape, network.channels, device=order_BL.device)
        if preserved is None:
            return cls(order_BL, tokens_BLc, 0)
        if network.preserves is None:
            raise ValueError(f"{type(network).__name__} draws whole images only; edit with MAR or another model")
        tokens_BLc = preserved.merge_tokens(scale, tokens_BLc)
        if network.preserves == "written over":
            return cls(order_BL, tokens_BLc, 0)
        drawn_BL = ~preserved.mask[scale].expand_as(order_BL).gather(1, order_BL)
        ranks = drawn_BL.long().argsort(dim=1, stable=True)
        return cls(order_BL.gather(1, ranks), tokens_BLc, preserved.counts[scale])

    def asked(self, end: int) -> Tensor:
        """Positions of the unknown tokens up to a rank, (B, N)."""
        return self.order_BL[:, self.known : end]

    def put(self, found: Tensor, end: int, preserved: Preserved | None, scale: int) -> None:
        """Enter the tokens up to a rank, (B, N, c)."""
        where = self.asked(end).unsqueeze(-1).expand_as(found)
        self.tokens_BLc = self.tokens_BLc.scatter(1, where, found)
        if preserved is not None:
            self.tokens_BLc = preserved.merge_tokens(scale, self.tokens_BLc)
        self.known = end
