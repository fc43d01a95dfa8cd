"""How a network draws single tokens: guided, tempered, filtered. What a verification needs of the steps it replaces.

Letters: B images, R rows (B, or 2B under guidance: conditional half first), L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from var_toolkit.core.bind import Bound
from var_toolkit.core.filters import guide
from var_toolkit.core.finite import FiniteCheck
from var_toolkit.core.plan import Tokens
from var_toolkit.heads.categorical import Categorical


@dataclass(frozen=True, eq=False)
class TokenSampling:
    """A network, and how tokens are drawn from its logits. `guided` tokens from the first on have guidance."""

    network: Any
    head: Categorical
    guidance: float = 0.0
    guided: int | None = None  # None: all

    @classmethod
    def of_steps(cls, steps: Sequence[Bound]) -> TokenSampling:
        """That of consecutive steps. ValueError unless they differ in nothing but guidance that ends."""
        first = steps[0].step
        if not isinstance(first.places, Tokens) or not isinstance(first.head, Categorical):
            name = type(steps[0].network).__name__
            raise ValueError(f"{name} draws whole maps at once; this speculation is for next-token models")
        strengths = [one.step.guidance for one in steps]
        on = [strength for strength in strengths if strength > 0]
        if any(one.step.head != first.head for one in steps) or strengths != [first.guidance] * len(on) + [0.0] * (
            len(steps) - len(on)
        ):
            raise ValueError(
                "the tokens of one verification must be drawn alike, but for guidance that ends; give cfg "
                "alone, without first_cfg"
            )
        ends = [one.step.places.first for one in steps[len(on) :] if isinstance(one.step.places, Tokens)]
        return cls(steps[0].network, first.head, first.guidance, ends[0] if ends else None)

    @property
    def rows(self) -> int:
        """Rows that the network computes for each image."""
        return 2 if self.guidance > 0 and self.guided != 0 else 1

    def choices(
        self, logits_RLV: Tensor, positions: Tensor, checks: FiniteCheck | None = None, what: str = ""
    ) -> Tensor:
        """Logits of the rows -> those that the tokens at some positions (B, L) of the map are drawn from, (B, L, V).

        Where guidance has ended the conditional half is used alone. `checks` records the guided logits as `what`.
        """
        if self.rows == 2:
            logits_RLV = self._guided(logits_RLV, positions)
        if checks is not None:
            checks.note(logits_RLV, what, self.network, self.guidance)
        return self.head.filtered(logits_RLV)

    def _guided(self, logits_RLV: Tensor, positions: Tensor) -> Tensor:
        if self.guided is None:
            return guide(logits_RLV, self.guidance)
        within = (positions < self.guided).unsqueeze(-1)
        return torch.where(within, guide(logits_RLV, self.guidance), logits_RLV.chunk(2)[0])
