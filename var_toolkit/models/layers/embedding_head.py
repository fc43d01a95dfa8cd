"""What both students of Distilled Decoding (arXiv 2412.17153) have: an output of embeddings; inputs that may be noise.

Letters: R rows, L tokens, C width, c channels of a code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.models.layers.linear import Linear

EPS = 1e-6


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
