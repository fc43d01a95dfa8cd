"""Drafts that a network draws level by level: after every node of a level, then after the tokens drawn there.

Letters: B images, R rows of the proposer (images, twice if it is guided), n nodes of a level, L tokens, C width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from var_toolkit.core.cache import RaggedCache
from var_toolkit.core.filters import pick
from var_toolkit.core.noise import Stream
from var_toolkit.core.parts import Part
from var_toolkit.methods.speculative.drafts import Draft, Topology, topology
from var_toolkit.methods.speculative.lengths import LengthPolicy
from var_toolkit.methods.speculative.rules import Kind
from var_toolkit.methods.speculative.token_sampling import TokenSampling
from var_toolkit.methods.speculative.verify import Checked, Rounds, along
from var_toolkit.models.layers.raster_positions import Branches


@dataclass(frozen=True)
class Shape(Part):
    """How many drafts follow each node of a level; with `chains` those of the first level are independent (K-SEQ)."""

    widths: tuple[int, ...]
    chains: bool = False

    @property
    def nodes(self) -> int:
        """Drafts of a whole tree."""
        return topology(self.widths, self.chains).nodes - 1 if self.widths else 0

    def __str__(self) -> str:
        if max(self.widths, default=1) == 1:
            return ""
        return f", {self.widths[0]} chains" if self.chains else f", tree {','.join(map(str, self.widths))}"


class Reader(Protocol):
    """A network that drafts, and its cache of every decided token, in some networks with the class before them."""

    cache: RaggedCache
    sampling: TokenSampling  # how it draws

    def read(self, tokens_BL: Tensor, features_RLC: Tensor, branches: Branches | None) -> Tensor:
        """Features at tokens that follow what the cache holds, (R, L, C)."""
        ...

    def logits(self, hidden_RLC: Tensor) -> Tensor:
        """Of the tokens behind them, (R, L, V)."""
        ...


class GrowingSession:
    """Reads the decided tokens, and drafts from there."""

    def __init__(self, reader: Reader, shape: Shape, lengths: LengthPolicy) -> None:
        self.reader, self.shape, self.confidence = reader, shape, lengths.confidence
        self.root_R1C: Tensor | None = None  # features at the last decided token

    def learn(self, run: Rounds, checked: Checked) -> None:
        """Read the decided tokens with the target's own features, in place of the predicted ones of drafting."""
        hidden_RLC = self.reader.read(checked.tokens, checked.features, None)
        new, read = checked.new * self.reader.sampling.rows, checked.tokens.shape[1]
        self.reader.cache.rewind([end - read + more for end, more in zip(self.reader.cache.lengths, new, strict=True)])
        if read == 1:
            self.root_R1C = hidden_RLC
            return
        last_R1 = torch.tensor([[max(more - 1, 0)] for more in new]).to(hidden_RLC.device)
        self.root_R1C = along(hidden_RLC, last_R1)

    def propose(self, run: Rounds, depths: Sequence[int]) -> tuple[Draft | None, list[int]]:
        """Level by level; an image stops where its proposer is not sure."""
        assert self.root_R1C is not None
        tree = topology(self.shape.widths[: max(depths)], self.shape.chains)
        before, hidden_RnC = self.reader.cache.lengths, self.root_R1C
        drafted = list(depths)
        tokens: list[Tensor] = []
        masses: list[Tensor] = []
        for level, width in enumerate(tree.widths):
            if level > 0:
                hidden_RnC = self._read(run, tree.levels[level], before, tokens[-1], hidden_RnC, tree)
            positions_Bn = (run.positions_B + level).unsqueeze(1).expand(-1, len(tree.levels[level]))
            logits, what = self.reader.logits(hidden_RnC), f"the draft model's logits from token {min(run.counts)} on"
            chosen = self.reader.sampling.choices(logits, positions_Bn, run.checks, what)
            q_BnV = self.reader.sampling.head.probabilities(chosen)
            drafted = self._sure(q_BnV, drafted, level)
            if max(drafted) <= level:
                break
            tokens.append(self._drawn(run, q_BnV, width, first=tree.levels[level + 1].start - 1))
            masses.append(q_BnV)
        self.reader.cache.rewind(before)
        # One for the root, and one for each level after which this image was read.
        passes = [min(levels + 1, asked) for levels, asked in zip(drafted, depths, strict=True)]
        if not tokens:
            return None, passes
        drawn = topology(tree.widths[: len(tokens)], tree.chains)
        kind: Kind = "distinct" if drawn.siblings > 1 and not drawn.chains else "independent"
        return Draft(torch.cat(tokens, 1), drawn, drafted, torch.cat(masses, 1), kind), passes

    def _read(
        self, run: Rounds, fed: range, before: list[int], tokens_Bn: Tensor, parents_RnC: Tensor, tree: Topology
    ) -> Tensor:
        """Features at the nodes of a level, whose parents' are given."""
        width = tokens_Bn.shape[1] // parents_RnC.shape[1]
        before_R = torch.tensor(before).to(tokens_Bn.device)
        branches = tree.branches(
            fed, before_R, run.positions_B.repeat(self.reader.sampling.rows), longest=max(before), first=1
        )
        return self.reader.read(tokens_Bn, parents_RnC.repeat_interleave(width, dim=1), branches)

    def _sure(self, q_BnV: Tensor, depths: list[int], level: int) -> list[int]:
        """The levels that count, cut here where no node has a likely enough token: seen before any is drawn.

        One read by the host, unless the confidence is 0.
        """
        if self.confidence == 0:
            return depths
        sure = (q_BnV.amax((1, 2)) >= self.confidence).tolist()
        return [depth if one else min(depth, level) for depth, one in zip(depths, sure, strict=True)]

    def _drawn(self, run: Rounds, q_BnV: Tensor, width: int, first: int) -> Tensor:
        """`width` tokens behind each node, (B, n * width): with replacement for chains, else without."""
        nodes = q_BnV.shape[1]
        uniform = run.noise.uniform(Stream.DRAFT, first, nodes * width, attempt=run.round).unflatten(1, (nodes, width))
        found = []
        for s in range(width):
            # If fewer codes have mass than are requested, `pick` gives the last code, as `Drafted.without` expects.
            token_Bn = pick(q_BnV, uniform[..., s])
            found.append(token_Bn)
            if not self.shape.chains:
                q_BnV = q_BnV.scatter(-1, token_Bn.unsqueeze(-1), 0.0)
        return torch.stack(found, dim=-1).flatten(1)


def work(network: Any, rows: int) -> int:
    """Multiply-adds of one pass over one token of an image, half a map behind it."""
    c = network.config
    return rows * (c.depth * network.layer_work(1, c.tokens // 2) + network.head_work(1))
