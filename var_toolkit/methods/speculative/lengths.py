"""How far to draft: policies that depend on earlier rounds, and never on the target of this round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from var_toolkit.core.parts import Part
from var_toolkit.ranges import checked

SHORTEST, FIRST = 2, 5  # windows of `Adaptive`
PATIENCE = 8  # rounds before a gain is believed


class Record(NamedTuple):
    """The result of one round of each image, int64 (B), on the device, so that the host need not wait for it."""

    drafted: Tensor  # levels of drafts
    accepted: Tensor  # of them; -1 where the image was finished before
    passes: Tensor  # of the proposer


class LengthPolicy(Part):
    """`window` counts the tokens that a pass may decide at most: the drafted ones, and one from the target itself."""

    window: int
    confidence: float  # a proposer that draws token by token stops where its likeliest token has less mass than this

    @property
    def first(self) -> int:
        """The window of an image's first round."""
        raise NotImplementedError

    def after(self, window_B: Tensor, record: Record) -> Tensor:
        """The windows after a round that had others, (B)."""
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

    def after(self, window_B: Tensor, record: Record) -> Tensor:
        return window_B

    def __str__(self) -> str:
        return f"window {self.window}" + (f", confidence {self.confidence}" if self.confidence else "")


@dataclass(frozen=True)
class Adaptive(Fixed):
    """Two tokens more after a round in which all drafts were accepted, one less after any other, up to `window`."""

    @property
    def first(self) -> int:
        return min(FIRST, self.window)

    def after(self, window_B: Tensor, record: Record) -> Tensor:
        longer_B = (window_B + 2).clamp(max=self.window)
        shorter_B = (window_B - 1).clamp(min=min(SHORTEST, self.window))
        changed_B = torch.where(record.accepted == record.drafted, longer_B, shorter_B)
        return torch.where(record.drafted == 0, window_B, changed_B)

    def __str__(self) -> str:
        return f"adaptive {super().__str__()}"


@dataclass
class Account:
    """What the rounds of each image have decided, and their cost, int64 (B)."""

    rounds: Tensor
    decided: Tensor
    passes: Tensor  # of the proposer

    @classmethod
    def of_images(cls, images: int, device: torch.device | str = "cpu") -> Account:
        """Of no rounds."""
        return cls(*(torch.zeros(images, dtype=torch.int64, device=device) for _ in range(3)))

    def add(self, record: Record) -> None:
        """One round more, for images that are not finished."""
        self.rounds = self.rounds + (record.accepted >= 0)
        self.decided = self.decided + record.accepted + 1
        self.passes = self.passes + record.passes

    def pays(self, cost: float) -> Tensor:
        """Whether drafting has decided more tokens than plain decoding would have for the same work, bool (B).

        `cost` is that of a proposer's pass in passes of the target; a pass of the target over several tokens counts as
        one. So it depends on no clock, and a seed gives one image. True until there are enough rounds to tell.
        """
        return (self.rounds < PATIENCE) | (self.decided >= self.rounds + cost * self.passes)
