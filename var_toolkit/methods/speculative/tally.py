"""Statistics of speculative decoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Tally:
    """Counts over the images of one or several batches."""

    images: int = 0
    target_passes: int = 0  # each image's own, summed
    draft_passes: int = 0
    decided: int = 0  # tokens
    drafted: int = 0  # tokens along the path that the rule looked at first; a tree has more
    accepted_counts: Counter[int] = field(default_factory=Counter)  # rounds by how many drafts were accepted
    fall_backs: int = 0  # images whose drafts did not pay, so that drafting ended
    forward_passes: int = 0  # of the target, over whole batches
    cache_bytes: int = 0  # of the target's keys and values at their largest
    paces: list[list[int]] = field(default_factory=list)  # next-token models: tokens of each pass, one list per image

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Self:
        """The sum of some tallies."""
        whole = cls()
        for one in tallies:
            for name in (
                "images",
                "target_passes",
                "draft_passes",
                "decided",
                "drafted",
                "fall_backs",
                "forward_passes",
            ):
                setattr(whole, name, getattr(whole, name) + getattr(one, name))
            whole.accepted_counts += one.accepted_counts
            whole.paces += one.paces
            whole.cache_bytes = max(whole.cache_bytes, one.cache_bytes)
        return whole

    def continued(self, later: Tally) -> Self:
        """The counts of this verification and of a later one of the same images."""
        whole = type(self).total((self, later))
        whole.images = self.images
        return whole

    def as_json(self) -> dict[str, Any]:
        """Means per image, shares, and the histogram of accepted drafts per round."""
        return {
            "passes_per_image": round(self.target_passes / self.images, 2),
            "tokens_per_pass": round(self.decided / self.target_passes, 3),
            "drafter_passes_per_image": round(self.draft_passes / self.images, 2),
            "acceptance": round(self.accepted / self.drafted, 4) if self.drafted else None,
            "accepted_histogram": {str(count): self.accepted_counts[count] for count in sorted(self.accepted_counts)},
            "fall_backs": self.fall_backs,
        }

    @property
    def accepted(self) -> int:
        """Drafted tokens that were accepted."""
        return sum(count * rounds for count, rounds in self.accepted_counts.items())


def together(tallies: Sequence[Tally]) -> Tally | None:
    """The sum of some tallies of one type; None if there are none."""
    return type(tallies[0]).total(tallies) if tallies else None
