"""The latent that grows scale by scale, and the inputs of networks that follow from it.

Letters: B images, L tokens, C channels.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from var_toolkit.core.preserved import Preserved
from var_toolkit.core.schedule import Schedule


class Canvas:
    """Tokens of each scale become a latent, and that the input of the next scale."""

    def __init__(self, pyramid: Any, schedule: Schedule, preserved: Preserved | None = None) -> None:
        self.pyramid, self.schedule, self.preserved = pyramid, schedule, preserved
        self.latent: Tensor | None = None
        self.inputs: list[Tensor] = []  # of scales 1, 2, ... as far as they are known
        self.codes: list[Tensor] = []  # of scales 0, 1, ... (B, n_k, C)

    def of(self, images: Tensor | slice) -> Canvas:
        """A canvas that begins with what some images of this one have."""
        other = copy(self)
        other.latent = None if self.latent is None else self.latent[images]
        other.inputs = [inputs_BLC[images] for inputs_BLC in self.inputs]
        other.codes = [codes_BLC[images] for codes_BLC in self.codes]
        return other

    def add(self, tokens: Tensor, scale: int, codes_BLC: Tensor | None = None) -> Tensor:
        """The latent after the tokens of a scale, or after other `codes` for them that are not preserved."""
        found = tokens if tokens.is_floating_point() else self.pyramid.embed(tokens)
        if codes_BLC is not None:
            found = codes_BLC if self.preserved is None else self.preserved.merge_codes(scale, found, codes_BLC)
        self.codes.append(found)
        latent: Tensor = self.pyramid.grow(self.latent, found, scale)
        self.latent = latent = latent if self.preserved is None else self.preserved.merge_latent(scale, latent)
        if scale + 1 < len(self.schedule):
            self.inputs.append(self.pyramid.shrink(latent, scale + 1))
        return latent

    def inputs_of(self, scales: range, copies: int) -> Tensor | None:
        """The inputs of some scales as rows (copies * B, L, C); scale 0 has none."""
        parts = self.inputs[max(scales.start, 1) - 1 : scales.stop - 1]
        if not parts:
            return None
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).repeat(copies, 1, 1)
