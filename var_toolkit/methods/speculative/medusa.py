"""Medusa (arXiv 2401.10774) and Hydra (arXiv 2402.05109): heads on the target's last features draft several tokens.

No token is read again, so there is no cache: all that is known at a node of the draft is its state, the features that
predicted the last decided token, and the embeddings of that token and of the drafts up to the node. Medusa's own rule
accepts what is typical of the target; here any rule goes with the heads.

Letters: B images, R rows (images, twice under guidance), L tokens, C width, X a state, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from var_toolkit.core.cache import RaggedCache
from var_toolkit.core.plan import DRAFT
from var_toolkit.methods.speculative.growing import GrowingSession, Shape
from var_toolkit.methods.speculative.lengths import LengthPolicy
from var_toolkit.methods.speculative.token_sampling import TokenSampling
from var_toolkit.methods.speculative.verify import Proposer, Rounds
from var_toolkit.methods.speculative.vocab_trim import Trimmed, output_work, told
from var_toolkit.models.layers.raster_positions import Branches
from var_toolkit.models.medusa_heads import HydraHeads, MedusaHeads


@dataclass(frozen=True)
class Medusa(Proposer):
    """Heads that are guided as the target is; with `sequential` those that read the drafts before theirs (Hydra)."""

    shape: Shape
    sequential: bool = False
    codes: tuple[int, ...] | None = None  # that they draft (`vocab_trim`); None is all

    roles: ClassVar[tuple[str, ...]] = (DRAFT,)

    @property
    def nodes(self) -> int:
        return self.shape.nodes

    @property
    def _name(self) -> str:
        return "hydra" if self.sequential else "medusa"

    def require_fit(self, target: Any, networks: Mapping[str, Any]) -> None:
        """ValueError unless the draft model is such heads, for a target of these sizes, and enough of them."""
        heads, kind = networks[DRAFT], HydraHeads if self.sequential else MedusaHeads
        if type(heads) is not kind:
            raise ValueError(
                f"the draft model is a {type(heads).__name__}; speculate {self._name} takes {kind.__name__}"
            )
        heads.require_fit(target)
        if len(self.shape.widths) > heads.config.heads:
            most = heads.config.heads
            raise ValueError(
                f"the draft model has {most} heads for as many drafts after each other: draft_length is {most + 1} at "
                f"most, and a tree has {most} levels at most"
            )

    def cost(self, target: TokenSampling, networks: Mapping[str, Any]) -> float:
        """One head and the target's output layer."""
        network = target.network
        layer, output = network.layer_work(1, network.config.tokens // 2), network.head_work(1)
        drafting = networks[DRAFT].work() + output_work(network, self.codes)
        return float(drafting / (network.config.depth * layer + output))

    def begin(self, run: Rounds, lengths: LengthPolicy) -> GrowingSession:
        return GrowingSession(run, HeadsReader(self, run), self.shape, lengths)

    def __str__(self) -> str:
        return f"drafts by {'Hydra' if self.sequential else 'Medusa'} heads{self.shape}{told(self.codes)}"


class HeadsReader:
    """Appends tokens to states."""

    cache: RaggedCache | None = None

    def __init__(self, settings: Medusa, run: Rounds) -> None:
        self.sampling, self.heads = run.sampling, run.networks[DRAFT]
        self.target: Any = run.network
        self.output = Trimmed(self.target, settings.codes)

    def read(self, tokens_BL: Tensor, features_RLX: Tensor, branches: Branches | None) -> Tensor:
        tokens_RL = tokens_BL.repeat(self.sampling.rows, 1)
        return torch.cat((features_RLX, self.target.tok_embeddings(tokens_RL)), dim=-1)

    def logits(self, hidden_RLX: Tensor) -> Tensor:
        return self.output.logits(self.heads(hidden_RLX))
