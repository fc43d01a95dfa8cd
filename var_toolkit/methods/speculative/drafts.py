"""Drafts of one round: tokens that may follow the last decided one, in a chain, several chains or a tree.

Letters: B images, R rows (images, twice under guidance), N drafts, M positions with drafts, S drafts for one position,
V vocabulary. Node 0 is the last decided token, the root; node 1 + i is draft i. Drafts are stored level by level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from var_toolkit.methods.speculative.rules import Drafted, Kind
from var_toolkit.models.layers.raster_positions import Branches


@dataclass(frozen=True)
class Topology:
    """Which draft follows which: `widths` children for every node of a level.

    As `chains`, independent drafts that happen to begin alike count for each other: the drafts for the position after a
    node are then those of all chains that agree up to there.
    """

    widths: tuple[int, ...]
    chains: bool = False

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(
                f"a draft tree has widths {list(self.widths)}; it must have one of 1 or more for each level"
            )
        if self.chains and max(self.widths[1:], default=1) > 1:
            raise ValueError(
                f"chains branch only at the root; widths are {list(self.widths)}, and all but the first must be 1"
            )

    @property
    def is_chain(self) -> bool:
        """Whether every draft follows the one before."""
        return max(self.widths) == 1

    @property
    def siblings(self) -> int:
        """Drafts for one position at most."""
        return max(self.widths)

    @cached_property
    def levels(self) -> list[range]:
        """The nodes of each level; the root is the first."""
        sizes = [prod(self.widths[:depth]) for depth in range(len(self.widths) + 1)]
        ends = [sum(sizes[: depth + 1]) for depth in range(len(sizes))]
        return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    @cached_property
    def nodes(self) -> int:
        """All of them, the root as well."""
        return self.levels[-1].stop

    @cached_property
    def parents(self) -> list[int]:
        """The node before each draft."""
        return [
            above[(node - below.start) // width]
            for (above, below), width in zip(pairwise(self.levels), self.widths, strict=True)
            for node in below
        ]

    @property
    def inner(self) -> int:
        """The M nodes that have drafts behind them: all but the last level."""
        return self.levels[-1].start

    @cached_property
    def children(self) -> list[list[int]]:
        """The drafts that follow each of the M nodes that have some, S each; -1 where there are fewer."""
        rows = []
        for above, below in pairwise(self.levels):
            for node in above:
                own = below if self.chains else [n for n in below if self.parents[n - 1] == node]
                rows.append([n - 1 for n in own] + [-1] * (self.siblings - len(own)))
        return rows

    def on(self, device: torch.device) -> Tables:
        """The topology as tensors, made once on each device; those of a chain without a copy from the host."""
        return _tables(self, device)

    def branches(self, fed: range, before_R: Tensor, root_R: Tensor, *, longest: int, first: int) -> Branches | None:
        """Positions and attention mask of a pass over the nodes `fed`; None for a chain, which is a plain sequence.

        The first `before_R` slots of each row of the cache, `longest` at most, are visible to every node, and `root_R`
        is the position of the root. The nodes from `first` on follow in the cache, those that are fed at the end.
        """
        if self.is_chain:
            return None
        device = before_R.device
        tables = self.on(device)
        positions_RL = root_R.unsqueeze(1) + tables.depths[fed.start : fed.stop]
        slots_K = torch.arange(longest + fed.stop - first, device=device)
        node_RK = slots_K - before_R.unsqueeze(1) + first
        sees_RLK = tables.sees[fed.start : fed.stop][:, node_RK.clamp(0, self.nodes - 1)].transpose(0, 1)
        ahead_R1K = (node_RK >= fed.stop).unsqueeze(1)
        return Branches(positions_RL, (sees_RLK | (node_RK < first).unsqueeze(1)) & ~ahead_R1K)


@lru_cache(maxsize=64)
def topology(widths: tuple[int, ...], chains: bool = False) -> Topology:
    """A topology, made once."""
    return Topology(widths, chains)


class Tables(NamedTuple):
    """What a topology is on a device."""

    depths: Tensor  # int64 (1 + N): how many drafts lead to each node
    children: Tensor  # int64 (M, S): the drafts that follow each node; -1 where there are fewer
    sees: Tensor  # bool (1 + N, 1 + N): the nodes that lead to a node, and itself


@lru_cache(maxsize=1024)  # a window near the end of an image has a chain of its own
def _tables(tree: Topology, device: torch.device) -> Tables:
    if tree.is_chain:
        steps = torch.arange(tree.nodes, device=device)
        return Tables(steps, steps[:-1].unsqueeze(1), steps <= steps.unsqueeze(1))
    depths = torch.tensor([depth for depth, level in enumerate(tree.levels) for _ in level])
    sees = torch.eye(tree.nodes, dtype=torch.bool)
    for node, parent in enumerate(tree.parents, start=1):
        sees[node] |= sees[parent]
    return Tables(depths.to(device), torch.tensor(tree.children).to(device), sees.to(device))


class PerImage(NamedTuple):
    """A number of each image, which the host knows and the device has."""

    known: list[int]
    tensor: Tensor  # int64 (B)

    @classmethod
    def of(cls, known: Sequence[int], device: torch.device | str = "cpu") -> PerImage:
        """Given numbers, which are copied to the device."""
        return cls(list(known), torch.tensor(known).to(device))


@dataclass(frozen=True)
class Draft:
    """The drafts of a round, and the distributions that they were drawn from."""

    tokens: Tensor  # (B, N), int64
    topology: Topology
    depths: PerImage  # the levels that count for each image, 0 for none
    q: Tensor | None  # (B, M, V): what the drafts behind each node were drawn from; None if they are certain
    kind: Kind

    def drafted(self) -> Drafted:
        """The same as a rule reads it: for each image and each of the M positions, (B, M, ...)."""
        tables = self.topology.on(self.tokens.device)
        depth_M = tables.depths[: self.topology.inner]
        valid_BMS = (depth_M < self.depths.tensor.unsqueeze(1)).unsqueeze(-1)
        if not self.topology.is_chain:
            valid_BMS = valid_BMS & (tables.children >= 0)
        if self.topology.chains:
            valid_BMS = valid_BMS & self._agreeing()
        tokens_BMS = self.by_position(self.tokens)
        return Drafted(tokens_BMS, valid_BMS, self.q, self.kind, depth_M.expand(valid_BMS.shape[:2]))

    def by_position(self, drafts_BN: Tensor) -> Tensor:
        """A value of each draft -> those of the drafts for each position, (B, M, S); any where there are fewer."""
        if self.topology.is_chain:
            return drafts_BN.unsqueeze(-1)
        return drafts_BN[:, self.topology.on(drafts_BN.device).children.clamp(min=0)]

    def _agreeing(self) -> Tensor:
        """Which chains have the same tokens as each chain up to each node, bool (B, M, chains)."""
        count = self.topology.siblings
        tokens_BDS = self.tokens.unflatten(1, (-1, count))
        same_BDSS = (tokens_BDS.unsqueeze(-1) == tokens_BDS.unsqueeze(-2)).int().cumprod(1).bool()
        root_B1S = torch.ones_like(same_BDSS[:, 0, :1])
        return torch.cat((root_B1S, same_BDSS[:, :-1].flatten(1, 2)), dim=1)
