"""LANTERN (arXiv 2410.03355) and LANTERN++ (arXiv 2502.06352): drafts are credited with the mass of similar codes.

Letters: V vocabulary, k neighbours, C channels of a code.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from var_toolkit.methods.speculative.rules import OneByOne, at, ratio, residual
from var_toolkit.ranges import checked


@dataclass(frozen=True)
class Lantern(OneByOne):
    """A draft x is weighed with p(x) and the mass of its nearest codes, taken in order as long as a bound holds.

    The bound is `delta` (LANTERN) or (`factor` - 1) p(x) (LANTERN++), whichever is given. The relaxed target has the
    gathered mass at x and none at those neighbours, so it differs from p by at most `delta` in total variation. With a
    certain draft the token comes out as that target draws it. A sampled draft meets another relaxed target for each x,
    so there the bound holds given the draft, and not over all drafts. `delta` 0 and `factor` 1 are the standard rule.
    The residual of a rejection is, as in the paper, that of the relaxed target.
    """

    neighbours: int = 1000  # k, or all other codes where there are fewer
    delta: float | None = None
    factor: float | None = None
    raw: bool = False  # whether distances are those of the codes as stored
    table: Tensor | None = field(default=None, init=False, compare=False, repr=False)  # (V, k), the nearest first

    def __post_init__(self) -> None:
        if (self.delta is None) == (self.factor is None):
            raise ValueError("LANTERN takes a delta or a lambda; give one of them")
        object.__setattr__(self, "neighbours", checked("neighbours", self.neighbours))
        for name, shown in (("delta", "delta"), ("factor", "lambda")):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, checked(name, getattr(self, name), shown))

    def bound(self, pyramid: Any) -> Lantern:
        """With the neighbours of the codes of a tokenizer."""
        codes_VC = pyramid.embedding.weight.detach() if self.raw else pyramid.codebook()
        return self.over(neighbours(codes_VC, min(self.neighbours, len(codes_VC) - 1)))

    def over(self, table_Vk: Tensor) -> Lantern:
        """With given neighbours of each code, int64 (V, k), the nearest first."""
        made = copy(self)
        object.__setattr__(made, "table", table_Vk)
        return made

    def probability(self, p: Tensor, q: Tensor | None, token: Tensor, depth: Tensor) -> Tensor:
        return ratio(at(self.relaxed(p, token), token), at(q, token))

    def left(self, p: Tensor, q: Tensor | None, token: Tensor) -> Tensor:
        return residual(self.relaxed(p, token), q, token)

    def relaxed(self, p: Tensor, token: Tensor) -> Tensor:
        """The target (..., V) by which a draft (...) is judged."""
        if self.table is None:
            raise ValueError("LANTERN compares codes; bind it to those of a tokenizer first")
        near = self.table.to(token.device)[token]
        mass = p.gather(-1, near)
        own = at(p, token)
        bound = torch.full_like(own, self.delta) if self.delta is not None else (self.factor - 1) * own  # type: ignore[operator]
        gathered = mass.cumsum(-1) <= bound.unsqueeze(-1)
        worth = own + (mass * gathered).sum(-1)
        emptied = p.scatter(-1, near, mass.masked_fill(gathered, 0.0))
        return emptied.scatter(-1, token.unsqueeze(-1), worth.unsqueeze(-1))

    def __str__(self) -> str:
        bound = f"delta {self.delta}" if self.delta is not None else f"lambda {self.factor}"
        return f"LANTERN, {bound}, {self.neighbours} neighbours{' by raw codes' if self.raw else ''}"


def neighbours(codes_VC: Tensor, count: int) -> Tensor:
    """The `count` nearest other codes of each, (V, count). ValueError if there are not as many.

    As seen by the tokenizer: codes that it compares by direction must come with unit length; the published table is
    made of the raw ones.
    """
    if not 1 <= count < len(codes_VC):
        raise ValueError(f"neighbours is {count}; it must be from 1 to {len(codes_VC) - 1}, one less than the codes")
    codes_VC = codes_VC.float()
    # Distances are made for some codes at a time: all at once they would fill gigabytes.
    return torch.cat([_nearest(part, codes_VC, count, start) for start, part in _parts(codes_VC)])


def _parts(codes_VC: Tensor, size: int = 1024) -> list[tuple[int, Tensor]]:
    return [(start, codes_VC[start : start + size]) for start in range(0, len(codes_VC), size)]


def _nearest(part_NC: Tensor, codes_VC: Tensor, count: int, start: int) -> Tensor:
    distance = torch.cdist(part_NC, codes_VC)
    rows = torch.arange(len(part_NC), device=distance.device)
    distance[rows, start + rows] = torch.inf  # a code is not its own neighbour
    return distance.topk(count, largest=False).indices
