"""Acceptance rules: which of the tokens drafted for a position is accepted, and what is drawn if none is.

Rules are pure functions of distributions and uniform numbers. Every tensor may have any leading dimensions, written
`...`. Letters: V vocabulary, S drafts for one position (siblings).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from var_toolkit.core.parts import Part

# How the drafts for one position were made: each drawn from q; each drawn from q without those before it; or picked
# without randomness, so that q is certain of them.
Kind = Literal["independent", "distinct", "certain"]
KINDS: tuple[Kind, ...] = ("independent", "distinct", "certain")


class Drafted(NamedTuple):
    """What was drafted for some positions."""

    tokens: Tensor  # (..., S), int64
    valid: Tensor  # (..., S), bool: those that do not count are passed over
    q: Tensor | None  # (..., V): what they were drawn from; None if they are certain
    kind: Kind
    depth: Tensor  # (...): how many drafts come before the position
    opinion: Tensor | None = None  # (..., S): what the rule has made of the target's features at the drafts

    def without(self, sibling: int) -> Tensor | None:
        """What the next sibling was drawn from."""
        if self.q is None or self.kind == "independent":
            return self.q
        rest = self.q.scatter(-1, self.tokens[..., sibling, None], 0.0)
        # Where nothing has mass any more the next one was certain: the proposer had no choice.
        certain = torch.zeros_like(rest).scatter(-1, self.tokens[..., sibling + 1, None], 1.0)
        return torch.where(self.valid[..., sibling, None], normalised(rest, certain), self.q)


class Verdict(NamedTuple):
    """What a rule says of some positions."""

    choice: Tensor  # (...), int64: the sibling that is accepted, or S if none is
    residual: Tensor  # (..., V): what the token is drawn from if none is


class Rule(Part, ABC):
    """Says which of the drafts for a position is accepted."""

    kinds: ClassVar[tuple[Kind, ...]] = KINDS  # of drafts that it can serve

    @abstractmethod
    def judge(self, p: Tensor, drafted: Drafted, uniform: Tensor) -> Verdict:
        """The target's p (..., V) and uniform numbers in (0, 1), (..., S) -> the verdict."""

    def choice(self, p: Tensor, drafted: Drafted, uniform: Tensor) -> Tensor:
        """The choice of `judge` alone, (...), where a rule can tell it for less."""
        return self.judge(p, drafted, uniform).choice

    def opinion(self, features: Tensor) -> Tensor | None:
        """The target's features at drafts (B, N, C) -> a number of each, for a rule that reads them.

        Under guidance they are those of the conditional half.
        """
        return None

    def require_fit(self, target: Any) -> None:
        """ValueError unless the rule can serve a target."""

    def bound(self, pyramid: Any) -> Rule:
        """The rule for the codes of a tokenizer."""
        return self

    @abstractmethod
    def __str__(self) -> str:
        """Name and parameters, as plans show them."""


class OneByOne(Rule):
    """Tries siblings one after another; each rejection replaces the target by its residual for the next."""

    def choice(self, p: Tensor, drafted: Drafted, uniform: Tensor) -> Tensor:
        if drafted.tokens.shape[-1] > 1:  # of which each depends on the residual of those before
            return super().choice(p, drafted, uniform)
        probability = self.accepting(p, drafted, 0)
        return (~(drafted.valid[..., 0] & (uniform[..., 0] < probability))).long()

    def judge(self, p: Tensor, drafted: Drafted, uniform: Tensor) -> Verdict:
        siblings = drafted.tokens.shape[-1]
        choice = torch.full(p.shape[:-1], siblings, dtype=torch.int64, device=p.device)
        for s in range(siblings):
            token, tried = drafted.tokens[..., s], drafted.valid[..., s] & (choice == siblings)
            accepted = tried & (uniform[..., s] < self.accepting(p, drafted, s))
            choice = torch.where(accepted, s, choice)
            p = torch.where((tried & ~accepted).unsqueeze(-1), self.left(p, drafted.q, token), p)
            if s + 1 < siblings:
                drafted = drafted._replace(q=drafted.without(s))
        return Verdict(choice, p)

    def accepting(self, p: Tensor, drafted: Drafted, sibling: int) -> Tensor:
        """The probability of accepting one of the drafts for each position, (...)."""
        return self.probability(p, drafted.q, drafted.tokens[..., sibling], drafted.depth)

    @abstractmethod
    def probability(self, p: Tensor, q: Tensor | None, token: Tensor, depth: Tensor) -> Tensor:
        """Of accepting one drafted token, (...). Of a certain draft q is None."""

    def left(self, p: Tensor, q: Tensor | None, token: Tensor) -> Tensor:
        """What the token is drawn from after a rejection, (..., V): the residual distribution."""
        return residual(p, q, token)


@dataclass(frozen=True)
class Standard(OneByOne):
    """Speculative sampling (Leviathan et al., arXiv 2211.17192, section 2.3): tokens come out as the target draws them.

    A draft is accepted with probability min(1, p / q); otherwise the token is drawn from the residual distribution,
    max(0, p - q) normalised. That is exact for any q: for one certain draft, for a list of certain ones, and for
    siblings with or without replacement, one after another.
    """

    def probability(self, p: Tensor, q: Tensor | None, token: Tensor, depth: Tensor) -> Tensor:
        return ratio(at(p, token), at(q, token))

    def __str__(self) -> str:
        return "standard acceptance"


def at(distribution: Tensor | None, token: Tensor) -> Tensor:
    """The mass of tokens (...); 1 where the draft is certain."""
    if distribution is None:
        return torch.ones((), device=token.device)
    return distribution.gather(-1, token.unsqueeze(-1)).squeeze(-1)


def ratio(p: Tensor, q: Tensor) -> Tensor:
    """min(1, p / q), and 0 where both are 0."""
    return (p / q).nan_to_num(0.0, posinf=1.0).clamp(max=1.0)


def residual(p: Tensor, q: Tensor | None, token: Tensor) -> Tensor:
    """The residual distribution max(0, p - q), normalised, (..., V)."""
    more = p.scatter(-1, token.unsqueeze(-1), 0.0) if q is None else (p - q).clamp(min=0.0)
    return normalised(more, p)


def normalised(mass: Tensor, otherwise: Tensor) -> Tensor:
    """Masses (..., V) as a distribution; where rounding has left none, `otherwise`."""
    total = mass.sum(-1, keepdim=True)
    return torch.where(total > 0, mass / total, otherwise)
