"""Heads on a GPT's last features (`models.llamagen`), each of which drafts a token farther ahead.

The heads of Medusa (arXiv 2401.10774) read the features alone, so a draft does not depend on those before it. Those of
Hydra (arXiv 2402.05109) also read the embeddings of the tokens since, the drafted ones among them. In both papers a
head is a hidden layer with an output layer of its own. Here a second small layer takes the place of the latter, added
to the features, and the target's norm and output layer follow: heads have no weights of the size of the vocabulary.

Letters: R rows (images, twice under guidance), L tokens, C width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.models.layers.linear import Linear
from var_toolkit.models.llamagen import RasterTransformer


@dataclass(frozen=True)
class MedusaHeadsConfig:
    """Sizes; `embed_dim` and `vocab_size` are those of the target. Head i drafts the i-th token after the next one."""

    embed_dim: int = 768
    vocab_size: int = 16384
    heads: int = field(default=4, metadata={"range": (1, 64)})
    hidden: int = field(default=768, metadata={"range": (1, 65_536)})

    def __post_init__(self) -> None:
        for name in ("embed_dim", "vocab_size", "heads", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive integer")


class MedusaHeads(nn.Module):
    """What is known at a token -> features for the target's norm and output layer, which draft the token after it.

    What is known is the features that predicted the first of some tokens, and the embeddings of these tokens, side by
    side, (R, L, (1 + tokens) C). The number of tokens says which head drafts: one token is the next one alone, which
    the target has drawn itself.
    """

    sequential: ClassVar[bool] = False  # whether a head reads the tokens

    def __init__(self, config: MedusaHeadsConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = nn.ModuleList(DraftHead(self.read(head), config) for head in range(config.heads))

    def read(self, head: int) -> int:
        """Vectors of width C that a head reads."""
        return 2 + head if self.sequential else 1

    def require_fit(self, target: RasterTransformer) -> None:
        """ValueError if the heads were built for a target of other sizes."""
        for name in ("embed_dim", "vocab_size"):
            ours, theirs = getattr(self.config, name), getattr(target.config, name)
            if ours != theirs:
                raise ValueError(
                    f"{name} is {ours} in the heads but {theirs} in the target; use heads trained for this target"
                )

    def work(self) -> int:
        """Multiply-adds of a draft on average, without the target's output layer."""
        reads = sum(self.read(head) + 1 for head in range(self.config.heads))
        return reads * self.config.embed_dim * self.config.hidden // self.config.heads

    def forward(self, known_RLX: Tensor) -> Tensor:
        """Features that draft the next token, (R, L, C)."""
        width = self.config.embed_dim
        head = known_RLX.shape[-1] // width - 2
        features_RLC: Tensor = self.heads[head](known_RLX[..., : self.read(head) * width])
        return features_RLC

    @torch.no_grad()
    def init_weights(self) -> None:
        """Begin with the target's features, as published for Medusa: each head drafts what the target draws next."""
        for head in self.heads:
            nn.init.zeros_(cast(Any, head).outward.weight)


class HydraHeads(MedusaHeads):
    """Heads that depend on the drafts before theirs."""

    sequential = True


class DraftHead(nn.Module):
    """Features, and what else is read -> the features plus a small MLP of all of it, each vector at unit scale."""

    def __init__(self, reads: int, config: MedusaHeadsConfig) -> None:
        super().__init__()
        self.width = config.embed_dim
        self.inward = Linear(reads * config.embed_dim, config.hidden)
        self.outward = Linear(config.hidden, config.embed_dim, bias=False)

    def forward(self, read_RLX: Tensor) -> Tensor:
        """(R, L, reads * C) -> (R, L, C)."""
        even_RLX = F.rms_norm(read_RLX.unflatten(-1, (-1, self.width)), (self.width,)).flatten(-2)
        added_RLC: Tensor = self.outward(F.silu(self.inward(even_RLX)))
        return read_RLX[..., : self.width] + added_RLC


NETWORKS = {"MedusaHeads": "draft_head", "HydraHeads": "draft_head"}
MODELS = {
    "stilllife-gpt-medusa": {
        "summary": "Medusa's heads, draft for stilllife-gpt",
        "embedded": {"draft_head": "stilllife-gpt-medusa"},
    },
    "stilllife-gpt-hydra": {
        "summary": "Hydra's heads, draft for stilllife-gpt",
        "embedded": {"draft_head": "stilllife-gpt-hydra"},
    },
}  # fmt: skip
