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

    @cached_property
    def depths(self) -> Tensor:
        """How many drafts lead to each node, int64 (1 + N)."""
        return torch.tensor([depth for depth, level in enumerate(self.levels) for _ in level])

    @cached_property
    def children_lists(self) -> list[list[int]]:
        """The drafts that follow each of the M nodes that have some, S each; -1 where there are fewer."""
        rows = []
        for above, below in pairwise(self.levels):
            for node in above:
                own = below if self.chains else [n for n in below if self.parents[n - 1] == node]
                rows.append([n - 1 for n in own] + [-1] * (self.siblings - len(own)))
        return rows

    @cached_property
    def children(self) -> Tensor:
        """The same as a tensor, int64 (M, S)."""
        return torch.tensor(self.children_lists)

    @cached_property
    def sees(self) -> Tensor:
        """Bool (1 + N, 1 + N): the nodes that lead to a node, and itself."""
        seen = torch.eye(self.nodes, dtype=torch.bool)
        for node, parent in enumerate(self.parents, start=1):
            seen[node] |= seen[parent]
        return seen

    def branches(self, fed: range, before_R: Tensor, root_R: Tensor, *, longest: int, first: int) -> Branches | None:
        """Positions and attention mask of a pass over the nodes `fed`; None for a chain, which is a plain sequence.

        The first `before_R` slots of each row of the cache, `longest` at most, are visible to every node, and `root_R`
        is the position of the root. The nodes from `first` on follow in the cache, those that are fed at the end.
        """
        if self.is_chain:
            return None
        device = before_R.device
        positions_RL = root_R.unsqueeze(1) + self.depths[fed.start : fed.stop].to(device)
        slots_K = torch.arange(longest + fed.stop - first, device=device)
        node_RK = slots_K - before_R.unsqueeze(1) + first
        sees_LN = self.sees[fed.start : fed.stop].to(device)
        sees_RLK = sees_LN[:, node_RK.clamp(0, self.nodes - 1)].transpose(0, 1)
        ahead_R1K = (node_RK >= fed.stop).unsqueeze(1)
        return Branches(positions_RL, (sees_RLK | (node_RK < first).unsqueeze(1)) & ~ahead_R1K)


@lru_cache(maxsize=64)
def topology(widths: tuple[int, ...], chains: bool = False) -> Topology:
    """A topology, made once."""
    return Topology(widths, chains)


@dataclass(frozen=True)
class Draft:
    """The drafts of a round, and the distributions that they were drawn from."""

    tokens: Tensor  # (B, N), int64
    topology: Topology
    depths: Sequence[int]  # (B): the levels that count for each image, 0 for none; known to the host
    q: Tensor | None  # (B, M, V): what the drafts behind each node were drawn from; None if they are certain
    kind: Kind

    def drafted(self) -> Drafted:
        """The same as a rule reads it: for each image and each of the M positions, (B, M, ...)."""
        device, count = self.tokens.device, len(self.topology.children)
        children_MS, depth_M = self.topology.children.to(device), self.topology.depths[:count].to(device)
        valid_BMS = (children_MS >= 0) & (depth_M < torch.tensor(self.depths).to(device).unsqueeze(1)).unsqueeze(-1)
        if self.topology.chains:
            valid_BMS = valid_BMS & self._agreeing()
        tokens_BMS = self.tokens[:, children_MS.clamp(min=0)]
        return Drafted(tokens_BMS, valid_BMS, self.q, self.kind, depth_M.expand(valid_BMS.shape[:2]))

    def _agreeing(self) -> Tensor:
        """Which chains have the same tokens as each chain up to each node, bool (B, M, chains)."""
        count = self.topology.siblings
        tokens_BDS = self.tokens.unflatten(1, (-1, count))
        same_BDSS = (tokens_BDS.unsqueeze(-1) == tokens_BDS.unsqueeze(-2)).int().cumprod(1).bool()
        root_B1S = torch.ones_like(same_BDSS[:, 0, :1])
        return torch.cat((root_B1S, same_BDSS[:, :-1].flatten(1, 2)), dim=1)
