"""Search at test time, as data in a plan: several candidates are drawn, and a scorer chooses one."""

from __future__ import annotations

from dataclasses import dataclass

from var_toolkit.core.parts import Part
from var_toolkit.ranges import checked
from var_toolkit.strict_fields import shown


@dataclass(frozen=True)
class BestOf(Part):
    """Of `count` candidates for each image, the one with the highest score is chosen.

    With a `threshold` it is the first with at least that score, the best if there is none, and no more candidates are
    drawn than that needs (rejection sampling). `scorer` is a name that `methods.scorers` knows.
    """

    count: int
    scorer: str
    threshold: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", checked("best_of", self.count))
        if not isinstance(self.scorer, str) or not self.scorer:
            raise ValueError(f"scorer is {shown(self.scorer)}; it must be the name of a scorer")
        if self.threshold is not None:
            object.__setattr__(self, "threshold", checked("threshold", self.threshold))


@dataclass(frozen=True)
class Candidates(Part):
    """Of `count` candidates of a scale, the one whose latent a small network scores highest is chosen.

    `scorer` is the network: its name among those that come with the package, or its directory.
    """

    count: int
    scorer: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", checked("candidates", self.count))
        if not isinstance(self.scorer, str) or not self.scorer:
            raise ValueError(f"latent_scorer is {shown(self.scorer)}; it must name a network or its directory")
