"""A categorical head that does not draw: the noise of each position leads to its code (`heads.code_flow`).

The codes have the same distribution as drawn ones, but each follows from noise of as many numbers as a code has.
Distilled Decoding (arXiv 2412.17153) learns from such pairs of noise and codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from var_toolkit.core.noise import Stream
from var_toolkit.heads.categorical import Categorical
from var_toolkit.heads.code_flow import SOLVERS, codes_of_noise
from var_toolkit.heads.head import Setting
from var_toolkit.ranges import checked


@dataclass(frozen=True)
class Flowed(Categorical):
    """How codes follow from noise: filters as for drawing, then a solver with so many steps."""

    solver: str = "rk4"
    flow_steps: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is {self.solver!r}; it must be one of {', '.join(SOLVERS)}")
        object.__setattr__(self, "flow_steps", checked("steps", self.flow_steps, "flow_steps"))

    def picker(self, at: Setting, first: int, count: int) -> Callable[[Tensor, int], Tensor]:
        """What leads to the tokens of a position, of `count` from `first` on, or of all, by their noise."""
        codes_VC = at.pyramid.codebook()
        noise_BLC = at.noise.normal(Stream.FLOW, first, count, codes_VC.shape[-1])

        def picked(filtered_BLV: Tensor, position: int) -> Tensor:
            part = noise_BLC[:, position : position + filtered_BLV.shape[1]].flatten(0, 1)
            logits_NV = filtered_BLV.flatten(0, 1) / (1.0 if self.temperature_first else self.temperature)
            found = codes_of_noise(part, logits_NV, codes_VC, solver=self.solver, steps=self.flow_steps)
            return found.view(filtered_BLV.shape[:2])

        return picked

    def shown(self, guidance: float) -> list[str]:
        """The settings in words."""
        return [*super().shown(guidance), f"codes by noise ({self.solver}, {self.flow_steps} steps)"]
