"""Classic speculative sampling (arXiv 2211.17192): a smaller model drafts, or the first layers of the target itself.

Letters: B images, R rows of the proposer (images, twice if it is guided), L tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from var_toolkit.conditions.text import reads
from var_toolkit.core.plan import DRAFT
from var_toolkit.methods.speculative.growing import GrowingSession, Shape, work
from var_toolkit.methods.speculative.lengths import LengthPolicy
from var_toolkit.methods.speculative.token_sampling import TokenSampling
from var_toolkit.methods.speculative.verify import Proposer, Rounds
from var_toolkit.methods.speculative.vocab_trim import Trimmed, told
from var_toolkit.models.draft_heads import ExitHead, early_exit
from var_toolkit.models.layers.raster_positions import Branches
from var_toolkit.models.llamagen import RasterTransformer

SHARED = ("vocab_size", "side")


@dataclass(frozen=True)
class SmallModel(Proposer):
    """A network of the same tokens and classes. It is guided as the target is, or not at all, at half the work."""

    shape: Shape
    guided: bool = True
    codes: tuple[int, ...] | None = None  # that it drafts (`vocab_trim`); None is all

    roles: ClassVar[tuple[str, ...]] = (DRAFT,)

    @property
    def nodes(self) -> int:
        return self.shape.nodes

    def network(self, target: Any, networks: Mapping[str, Any]) -> RasterTransformer:
        """The network that drafts."""
        return cast(RasterTransformer, networks[DRAFT])

    def require_fit(self, target: Any, networks: Mapping[str, Any]) -> None:
        """ValueError unless the draft model is a next-token model of the same tokens and classes."""
        found = self.network(target, networks)
        if not isinstance(found, RasterTransformer):
            raise ValueError(
                f"the draft model is of kind {type(found).__name__}; speculate draft needs a next-token model"
            )
        for name in SHARED:
            ours, theirs = getattr(target.config, name), getattr(found.config, name)
            if ours != theirs:
                raise ValueError(f"the draft model has {name} {theirs}, but the target has {ours}; use one that agrees")
        if reads(target) != reads(found):
            raise ValueError(
                "the draft model has other classes or reads other text than the target; use one that agrees"
            )

    def sampling(self, target: TokenSampling, networks: Mapping[str, Any]) -> TokenSampling:
        """How it draws: as the target does, but for its guidance."""
        network = self.network(target.network, networks)
        if not self.guided:
            return TokenSampling(network, target.head)
        return TokenSampling(network, target.head, target.guidance, target.guided)

    def cost(self, target: TokenSampling, networks: Mapping[str, Any]) -> float:
        own = self.sampling(target, networks)
        return work(own.network, own.rows, self.codes) / work(target.network, target.rows)

    def begin(self, run: Rounds, lengths: LengthPolicy) -> GrowingSession:
        return GrowingSession(run, SmallReader(self, run), self.shape, lengths)

    def described(self, networks: Mapping[str, Any]) -> str:
        config = networks[DRAFT].config
        named = f"{type(networks[DRAFT]).__name__} {config.depth} x {config.embed_dim}"
        return f"drafts by {named}{'' if self.guided else ' without guidance'}{self.shape}{told(self.codes)}"


@dataclass(frozen=True)
class EarlyExit(SmallModel):
    """The first `layers` layers of the target, and a trained head if the role of drafts has one (`with_head`)."""

    layers: int = 2
    with_head: bool = False

    @property
    def roles(self) -> tuple[str, ...]:  # type: ignore[override]
        """The head's, if there is one."""
        return (DRAFT,) if self.with_head else ()

    def network(self, target: Any, networks: Mapping[str, Any]) -> RasterTransformer:
        """The target up to its exit."""
        return early_exit(target, self.layers, networks[DRAFT] if self.with_head else None)

    def require_fit(self, target: Any, networks: Mapping[str, Any]) -> None:
        """ValueError unless the target has more layers, and the head was trained for this exit."""
        if self.with_head and not isinstance(networks[DRAFT], ExitHead):
            name = type(networks[DRAFT]).__name__
            raise ValueError(f"the draft model is a {name}; speculate early-exit takes an ExitHead")
        self.network(target, networks)

    def described(self, networks: Mapping[str, Any]) -> str:
        head = " with a trained head" if self.with_head else ""
        guided = "" if self.guided else " without guidance"
        return f"drafts by an exit after {self.layers} layers{head}{guided}{self.shape}{told(self.codes)}"


class SmallReader:
    """Reads the condition, then tokens; it does not use the target's features."""

    def __init__(self, settings: SmallModel, run: Rounds) -> None:
        self.sampling = settings.sampling(run.sampling, run.networks)
        self.network, rows = self.sampling.network, run.images * self.sampling.rows
        self.output = Trimmed(self.network, settings.codes)
        self.prefix = self.network.condition(run.request.rows(self.network, self.sampling.rows)).tokens
        self.begun_RL = run.tokens_BL[:, : run.first].repeat(self.sampling.rows, 1)
        self.cache = self.network.new_ragged_cache(rows, 2 + run.total + settings.nodes)

    def read(self, tokens_BL: Tensor, features_RLC: Tensor, branches: Branches | None) -> Tensor:
        prefix, tokens_RL, new = None, tokens_BL.repeat(self.sampling.rows, 1), tokens_BL.shape[1]
        if self.cache.length == 0:
            prefix, tokens_RL = self.prefix, torch.cat((self.begun_RL, tokens_RL), dim=1)
        return self.network.next_hidden(prefix, tokens_RL, cache=self.cache, branches=branches)[:, -new:]

    def logits(self, hidden_RLC: Tensor) -> Tensor:
        return self.output.logits(hidden_RLC)
