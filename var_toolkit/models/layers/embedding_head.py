"""What both students of Distilled Decoding (arXiv 2412.17153) have: an output of embeddings; inputs that may be noise.

Letters: R rows, L tokens, C width, c channels of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.core.plan import Together
from var_toolkit.core.schedule import Schedule
from var_toolkit.models.layers.linear import Linear

EPS = 1e-6


class Student:
    """What students tell plans: each step draws everything at once, without guidance and without a cache."""

    config: Any

    def places(self, schedule: Schedule) -> tuple[Any, ...]:
        """What its steps draw: everything at once."""
        return (Together(0, schedule.total),)

    def guidance_ramp(self, schedule: Schedule) -> tuple[float, ...]:
        """None at any scale."""
        return (0.0,) * len(schedule)

    def new_cache(self, rows: int, capacities: Sequence[int] | None = None) -> Any:
        """None: everything is computed in each step."""
        raise ValueError(f"{type(self).__name__} has no cache")

    def cache_values(self, tokens: int) -> int:
        """Number of cached values: 0 for any number of tokens."""
        return 0

    def embedding_work(self, drawn: int) -> int:
        """Multiply-adds of the embeddings of `drawn` tokens."""
        work: int = drawn * self.config.embed_dim * self.config.latent_channels
        return work


class EmbeddingHead(nn.Module):
    """Features -> embeddings, modulated by the class embedding itself, without an activation before it."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = Linear(width, channels)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))

    def forward(self, hidden_RLC: Tensor, class_R1C: Tensor) -> Tensor:
        """(R, L, C) and (R, 1, C) -> (R, L, c), float32."""
        shift, scale = self.scale_shift_table
        normed = F.layer_norm(hidden_RLC, hidden_RLC.shape[-1:], eps=EPS)
        return self.linear(normed * (1 + scale + class_R1C) + shift + class_R1C).float()


def is_data(length: int, kept: int | Tensor, device: torch.device) -> Tensor:
    """Which of the class and the `length` - 1 tokens behind it are data, int64 (1 or R, L): the first `kept` tokens."""
    kept_R1 = kept if isinstance(kept, int) else kept.view(-1, 1)
    return (torch.arange(length, device=device)[None] <= kept_R1).long()
