"""Which layers of a network compute which scales (VARiant)."""

from __future__ import annotations

from dataclasses import dataclass

from var_toolkit.core.schedule import Scales


@dataclass(frozen=True)
class Subnet:
    """Scales below `full_scales` run through every layer, the others only through `layers`.

    A skipped layer is the identity on the residual stream (VARiant, arXiv 2511.16546).
    """

    layers: tuple[int, ...]
    full_scales: int

    def depth_tokens(self, layer: int, scales: Scales, span: range) -> int:
        """How many of the first tokens of the scales in `span` run through a layer."""
        last = span.stop if layer in self.layers else min(max(self.full_scales, span.start), span.stop)
        return scales.offsets[last] - scales.offsets[span.start]
