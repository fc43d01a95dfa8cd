"""EAGLE (arXiv 2401.15077): a trained block predicts from the target's own features.

Letters: B images, R rows (images, twice under guidance), L tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from var_toolkit.methods.speculative.engine import Run
from var_toolkit.methods.speculative.growing import GrowingSession, Shape
from var_toolkit.methods.speculative.lengths import LengthPolicy
from var_toolkit.models.draft_heads import EagleHead
from var_toolkit.models.llamagen import Branches

if TYPE_CHECKING:
    from var_toolkit.core.plan import Stage


@dataclass(frozen=True, eq=False)
class Eagle:
    """The head and the target are guided alike, as published for LANTERN."""

    head: EagleHead
    shape: Shape

    @property
    def nodes(self) -> int:
        return self.shape.nodes

    @property
    def networks(self) -> Sequence[Any]:
        return (self.head,)

    def cost(self, stage: Stage) -> float:
        """One block of the target's layers and its output layer."""
        target: Any = stage.backbone
        layer = target.layer_work(1, target.config.tokens // 2)
        return float((layer + target.head_work(1)) / (target.config.depth * layer + target.head_work(1)))

    def begin(self, run: Run, lengths: LengthPolicy) -> GrowingSession:
        return GrowingSession(EagleReader(self, run), self.shape, lengths)

    def __str__(self) -> str:
        return f"drafts by an EAGLE head{self.shape}"


class EagleReader:
    """Reads tokens with the features that predicted them."""

    def __init__(self, settings: Eagle, run: Run) -> None:
        self.stage, self.head = run.stage, settings.head
        self.target: Any = run.stage.backbone
        self.cache = self.head.new_ragged_cache(len(run.labels_R), 1 + run.total + settings.nodes)

    def read(self, tokens_BL: Tensor, features_RLC: Tensor, branches: Branches | None) -> Tensor:
        tokens_RL = tokens_BL.repeat(self.stage.rows, 1)
        return self.head.next_features(self.target, tokens_RL, features_RLC, cache=self.cache, branches=branches)

    def logits(self, hidden_RLC: Tensor) -> Tensor:
        logits: Tensor = self.target.next_logits(hidden_RLC)
        return logits
