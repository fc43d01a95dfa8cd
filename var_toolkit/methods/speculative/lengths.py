"""How far to draft: policies that depend on earlier rounds, and never on the target of this round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from var_toolkit.core.parts import Part
from var_toolkit.ranges import checked

SHORTEST, FIRST = 2, 5  # windows of `Adaptive`
PATIENCE = 8  # rounds before a gain is believed


class Record(NamedTuple):
    """The result of one round of one image."""

    drafted: int  # levels of drafts
    accepted: int  # of them
    passes: int  # of the proposer


class LengthPolicy(Part):
    """`window` counts the tokens that a pass may decide at most: the drafted ones, and one from the target itself."""

    window: int
    confidence: float  # a proposer that draws token by token stops where its likeliest token has less mass than this

    @property
    def first(self) -> int:
        """The window of an image's first round."""
        raise NotImplementedError

    def after(self, window: int, record: Record) -> int:
        """The window after a round that had another."""
        raise NotImplementedError


@dataclass(frozen=True)
class Fixed(LengthPolicy):
    """The same length in every round, or less where the proposer is not sure (Kangaroo, arXiv 2404.18911)."""

    window: int
    confidence: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", checked("draft_length", self.window))
        object.__setattr__(self, "confidence", checked("draft_confidence", self.confidence))

    @property
    def first(self) -> int:
        return self.window

    def after(self, window: int, record: Record) -> int:
        return window

    def __str__(self) -> str:
        return f"window {self.window}" + (f", confidence {self.confidence}" if self.confidence else "")


@dataclass(frozen=True)
class Adaptive(Fixed):
    """Two tokens more after a round in which all drafts were accepted, one less after any other, up to `window`."""

    @property
    def first(self) -> int:
        return min(FIRST, self.window)

    def after(self, window: int, record: Record) -> int:
        if record.drafted == 0:
            return window
        if record.accepted == record.drafted:
            return min(window + 2, self.window)
        return max(window - 1, min(SHORTEST, self.window))

    def __str__(self) -> str:
        return f"adaptive {super().__str__()}"


@dataclass
class Account:
    """What the rounds of an image have decided, and their cost."""

    rounds: int = 0
    decided: int = 0
    passes: int = 0  # of the proposer

    def add(self, record: Record) -> None:
        """One round more."""
        self.rounds, self.passes = self.rounds + 1, self.passes + record.passes
        self.decided += record.accepted + 1

    def pays(self, cost: float) -> bool:
        """Whether drafting has decided more tokens than plain decoding would have for the same work.

        `cost` is that of a proposer's pass in passes of the target; a pass of the target over several tokens counts as
        one. So it depends on no clock, and a seed gives one image. True until there are enough rounds to tell.
        """
        return self.rounds < PATIENCE or self.decided >= self.rounds + cost * self.passes
