"""EAGLE (arXiv 2401.15077): a trained block predicts from the target's own features.

Letters: B images, R rows (images, twice under guidance), L tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from var_toolkit.core.plan import DRAFT
from var_toolkit.methods.speculative.growing import GrowingSession, Shape
from var_toolkit.methods.speculative.lengths import LengthPolicy
from var_toolkit.methods.speculative.token_sampling import TokenSampling
from var_toolkit.methods.speculative.verify import Proposer, Rounds
from var_toolkit.methods.speculative.vocab_trim import Trimmed, output_work, told
from var_toolkit.models.draft_heads import EagleHead
from var_toolkit.models.layers.raster_positions import Branches


@dataclass(frozen=True)
class Eagle(Proposer):
    """The head and the target are guided alike, as published for LANTERN."""

    shape: Shape
    codes: tuple[int, ...] | None = None  # that it drafts (`vocab_trim`); None is all

    roles: ClassVar[tuple[str, ...]] = (DRAFT,)
    needs_all_features: ClassVar[bool] = True

    @property
    def nodes(self) -> int:
        return self.shape.nodes

    def require_fit(self, target: Any, networks: Mapping[str, Any]) -> None:
        """ValueError unless the draft model is an EAGLE head for a target of these sizes."""
        head = networks[DRAFT]
        if not isinstance(head, EagleHead):
            raise ValueError(f"the draft model is a {type(head).__name__}; speculate eagle takes an EagleHead")
        head.require_fit(target)

    def cost(self, target: TokenSampling, networks: Mapping[str, Any]) -> float:
        """One block of the target's layers and its output layer."""
        network = target.network
        layer = network.layer_work(1, network.config.tokens // 2)
        whole = network.config.depth * layer + network.head_work(1)
        return float((layer + output_work(network, self.codes)) / whole)

    def begin(self, run: Rounds, lengths: LengthPolicy) -> GrowingSession:
        return GrowingSession(run, EagleReader(self, run), self.shape, lengths)

    def __str__(self) -> str:
        return f"drafts by an EAGLE head{self.shape}{told(self.codes)}"


class EagleReader:
    """Reads tokens with the features that predicted them."""

    def __init__(self, settings: Eagle, run: Rounds) -> None:
        self.sampling, self.head = run.sampling, run.networks[DRAFT]
        self.target: Any = run.network
        self.output = Trimmed(self.target, settings.codes)
        self.cache = self.head.new_ragged_cache(run.images * self.sampling.rows, 1 + run.total + settings.nodes)

    def read(self, tokens_BL: Tensor, features_RLC: Tensor, branches: Branches | None) -> Tensor:
        tokens_RL = tokens_BL.repeat(self.sampling.rows, 1)
        fed = (self.target, tokens_RL, features_RLC)
        found: Tensor = self.head.next_features(*fed, cache=self.cache, branches=branches)
        return found

    def logits(self, hidden_RLC: Tensor) -> Tensor:
        return self.output.logits(hidden_RLC)
