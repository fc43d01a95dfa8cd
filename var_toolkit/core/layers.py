"""Which layers of a network compute which scales (VARiant)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from var_toolkit.core.schedule import Schedule


@dataclass(frozen=True)
class Layers:
    """Scales below `full_scales` run through every layer, the others only through the `active` ones.

    A skipped layer is the identity on the residual stream (VARiant, arXiv 2511.16546).
    """

    active: tuple[int, ...]
    full_scales: int

    @classmethod
    def spread(cls, depth: int, count: int, full_scales: int) -> Self:
        """`count` of `depth` layers, spread evenly, with the first and the last (section 3). ValueError if impossible.

        They are not nested: of 30 layers, the 8 kept are not all among the 16 kept.
        """
        if not 2 <= count <= depth:
            raise ValueError(f"subnet is {count}; it must be from 2 to {depth}, the layers of the backbone")
        return cls(tuple(i * (depth - 1) // (count - 1) for i in range(count)), full_scales)

    def computes(self, layer: int, scale: int) -> bool:
        """Whether a scale runs through a layer."""
        return layer in self.active or scale < self.full_scales

    def depth_tokens(self, layer: int, schedule: Schedule, span: range) -> int:
        """How many of the first tokens of the scales in `span` run through a layer."""
        last = span.stop if layer in self.active else min(max(self.full_scales, span.start), span.stop)
        return schedule.offsets[last] - schedule.offsets[span.start]
