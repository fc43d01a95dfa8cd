"""Classic speculative sampling (arXiv 2211.17192): a smaller model drafts, or the first layers of the target itself.

Letters: B images, R rows of the proposer (images, twice if it is guided), L tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from var_toolkit.methods.speculative.engine import Run
from var_toolkit.methods.speculative.growing import GrowingSession, Shape, work
from var_toolkit.methods.speculative.lengths import LengthPolicy
from var_toolkit.models.llamagen import Branches, RasterGPT

if TYPE_CHECKING:
    from var_toolkit.core.plan import Stage


@dataclass(frozen=True, eq=False)
class SmallModel:
    """A network of the same tokens and classes. It is guided as the target is, or not at all, at half the work."""

    network: RasterGPT
    shape: Shape
    guided: bool = True
    name: str = "a smaller model"

    @property
    def nodes(self) -> int:
        return self.shape.nodes

    def stage(self, target: Stage) -> Stage:
        """How it draws: as the target does, but for its guidance."""
        guidance = target.guidance if self.guided else 0.0
        kept = target.guided_tokens if guidance else None
        return replace(target, backbone=self.network, guidance=guidance, guided_tokens=kept, speculation=None)

    @property
    def networks(self) -> Sequence[Any]:
        return (self.network,)

    def cost(self, stage: Stage) -> float:
        return work(self.network, self.stage(stage).rows) / work(stage.backbone, stage.rows)

    def begin(self, run: Run, lengths: LengthPolicy) -> GrowingSession:
        return GrowingSession(SmallReader(self, run), self.shape, lengths)

    def __str__(self) -> str:
        return f"drafts by {self.name}{'' if self.guided else ' without guidance'}{self.shape}"


class SmallReader:
    """Reads the class, then tokens; it does not use the target's features."""

    def __init__(self, settings: SmallModel, run: Run) -> None:
        self.stage, self.network = settings.stage(run.stage), settings.network
        self.labels_R = run.labels_R[: run.images * self.stage.rows]
        self.cache = self.network.new_ragged_cache(len(self.labels_R), 2 + run.total + settings.nodes)

    def read(self, tokens_BL: Tensor, features_RLC: Tensor, branches: Branches | None) -> Tensor:
        labels = self.labels_R if self.cache.length == 0 else None
        tokens_RL = tokens_BL.repeat(self.stage.rows, 1)
        hidden = self.network.next_hidden(labels, tokens_RL, cache=self.cache, branches=branches)
        return hidden[:, -tokens_BL.shape[1] :]

    def logits(self, hidden_RLC: Tensor) -> Tensor:
        return cast(Tensor, self.network.next_logits(hidden_RLC))
