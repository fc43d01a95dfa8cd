"""Which layers of a network a scale runs through."""

from __future__ import annotations

from dataclasses import dataclass

from var_toolkit.scales import Scales


@dataclass(frozen=True)
class Subnet:
    """Scales below `full_scales` run through every layer, the others through `layers` alone.

    A layer that is skipped is the identity: the residual stream passes by it (VARiant, arXiv 2511.16546).
    """

    layers: tuple[int, ...]
    full_scales: int

    def depth_tokens(self, layer: int, scales: Scales, span: range) -> int:
        """How many of the tokens of the scales in `span`, counted from its start, run through a layer."""
        last = span.stop if layer in self.layers else min(max(self.full_scales, span.start), span.stop)
        return scales.offsets[last] - scales.offsets[span.start]
