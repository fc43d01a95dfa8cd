"""Maps drawn in a random order, a group of tokens at a time (MaskGIT, arXiv 2202.04200; MAR, arXiv 2406.11838).

Letters: B images, R rows, L tokens, N some of them, C width, c channels of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, floor, pi
from typing import Any

import torch
from torch import Tensor

from var_toolkit.conditions.condition import Condition as Given
from var_toolkit.conditions.condition import labels_of
from var_toolkit.core.cache import KVCache
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import Group
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.diffusion import Diffusion
from var_toolkit.heads.head import Head
from var_toolkit.models.layers.by_scale import OwnSchedule


def cosine_groups(scale: int, tokens: int, iterations: int) -> list[Group]:
    """The published schedule: after iteration i of n about cos(pi / 2 i / n) of the tokens are hidden.

    Every iteration draws a token or more, and the last one the rest. ValueError for more iterations than tokens.
    """
    if not 1 <= iterations <= tokens:
        raise ValueError(f"steps is {iterations}; it must be from 1 to {tokens}, the number of tokens")
    hidden, groups = tokens, []
    for done in range(1, iterations + 1):
        left = max(1, min(hidden - 1, floor(tokens * cos(pi / 2 * done / iterations)))) if done < iterations else 0
        groups.append(Group(scale, tokens - hidden, hidden - left))
        hidden = left
    return groups


def drawn_share(group: Group, schedule: Schedule) -> float:
    """How much of a map is drawn after a group; after the last one, as published, one token counts as hidden."""
    tokens = schedule.lengths[group.index]
    return (tokens - max(1, tokens - group.first - group.count)) / tokens


@dataclass(frozen=True)
class Condition:
    """What depends on the labels: the vector that fills the buffer of each row."""

    rows_RC: Tensor  # noqa: N815

    def of_rows(self, rows: Tensor | slice) -> Condition:
        """The condition of some of the rows."""
        return Condition(self.rows_RC[rows])


class RandomOrder(OwnSchedule):
    """What networks of random orders share. Their null class is `fake_latent`, and no row of the table of classes."""

    markov = True  # nothing is cached: each pass reads all that is known
    has_subnets = False
    default_head: Head = Diffusion("ddpm")

    config: Any
    fake_latent: Tensor
    class_emb: Any
    mask_token: Tensor

    def guidance_ramp(self, schedule: Schedule) -> tuple[float, ...]:
        """Guidance of each map; `guidance_at` lowers it."""
        return (1.0,) * len(schedule)

    def guidance_at(self, group: Group, schedule: Schedule) -> float:
        """What guidance is multiplied with at a group."""
        return drawn_share(group, schedule)

    def head_at(self, head: Head, schedule: Schedule, scale: int) -> Head:
        """The head, with the solver of the authors where that is asked for."""
        return head.published_as("ddpm") if isinstance(head, Diffusion) else head

    def group_head_work(self, group: Group, schedule: Schedule) -> int:
        """Multiply-adds of one evaluation of the head for a group."""
        return self.head_work(group.count)

    def head_work(self, drawn: int) -> int:
        """Multiply-adds of one evaluation of the head for `drawn` tokens."""
        raise NotImplementedError

    def order(self, schedule: Schedule, scale: int, noise: Noise) -> Tensor:
        """The random order of each image, (B, L)."""
        return noise.order(schedule.offsets[scale], schedule.lengths[scale])

    def new_cache(self, rows: int, capacities: Any = None) -> KVCache:
        """A cache without layers."""
        weight = self.mask_token
        return KVCache((), rows=rows, heads=1, head_dim=1, dtype=weight.dtype, device=weight.device)

    def cache_values(self, tokens: int) -> int:
        """Nothing is cached."""
        return 0

    def condition(self, given: Given) -> Condition:
        """Labels (`num_classes` is the null class) -> the vector of each row."""
        labels = labels_of(given, type(self).__name__)
        known = self.class_emb(labels.clamp(max=self.config.num_classes - 1))
        return Condition(torch.where((labels == self.config.num_classes).unsqueeze(-1), self.fake_latent, known))


def taken(tokens_RLc: Tensor, positions_RN: Tensor) -> Tensor:
    """The tokens at some positions of each row, (R, N, c)."""
    return tokens_RLc.gather(1, positions_RN.unsqueeze(-1).expand(-1, -1, tokens_RLc.shape[-1]))


def block_work(width: int, ratio: float, new: int, context: int) -> int:
    """Multiply-adds of a transformer block for `new` tokens that attend to `context` tokens."""
    return round(new * ((4 + 2 * ratio) * width**2 + 2 * context * width))
