"""Grouped speculative decoding (GSD): a draft is judged together with the codes that are about as likely.

Letters: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from var_toolkit.methods.speculative.rules import OneByOne, at, ratio
from var_toolkit.ranges import checked


@dataclass(frozen=True)
class Grouped(OneByOne):
    """Accepts with probability min(1, P / Q): the masses of the `size` codes nearest in p to the draft, with itself.

    The residual is that of the standard rule, which is the case of `size` 1. Larger groups accept more drafts on
    average, though not each one.
    """

    size: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", checked("group", self.size))

    def probability(self, p: Tensor, q: Tensor | None, token: Tensor, depth: Tensor) -> Tensor:
        apart = (p - at(p, token).unsqueeze(-1)).abs().scatter(-1, token.unsqueeze(-1), -1.0)  # itself comes first
        group = apart.topk(min(self.size, p.shape[-1]), largest=False).indices
        of_p = p.gather(-1, group).sum(-1)
        of_q = at(q, token) if q is None else q.gather(-1, group).sum(-1)
        return ratio(of_p, of_q)

    def __str__(self) -> str:
        return f"grouped acceptance, {self.size} codes"
