"""Drafts that a network draws level by level: after every node of a level, then after the tokens drawn there.

Letters: B images, R rows of the proposer (images, twice if it is guided), n nodes of a level, L tokens, C width,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from var_toolkit.core.cache import RaggedCache
from var_toolkit.core.filters import pick
from var_toolkit.core.noise import RoundNoise, Stream
from var_toolkit.core.parts import Part
from var_toolkit.methods.speculative.drafts import Draft, PerImage, Topology, topology
from var_toolkit.methods.speculative.lengths import LengthPolicy
from var_toolkit.methods.speculative.rules import Kind
from var_toolkit.methods.speculative.token_sampling import TokenSampling
from var_toolkit.methods.speculative.verify import Checked, Rounds, along
from var_toolkit.methods.speculative.vocab_trim import Trimmed, output_work
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

    def ready(self, device: torch.device) -> None:
        """Make the tables of the tree, and of its first levels, on a device: later rounds copy nothing to it."""
        for levels in range(len(self.widths)):
            topology(self.widths[: levels + 1], self.chains).on(device)

    def __str__(self) -> str:
        if max(self.widths, default=1) == 1:
            return ""
        return f", {self.widths[0]} chains" if self.chains else f", tree {','.join(map(str, self.widths))}"


class Reader(Protocol):
    """A network that drafts, and its cache of every decided token, in some networks with the class before them."""

    cache: RaggedCache | None  # None where the features at a token say all that is known of those before it
    sampling: TokenSampling  # how it draws
    output: Trimmed  # its last layer

    def read(self, tokens_BL: Tensor, features_RLC: Tensor, branches: Branches | None) -> Tensor:
        """Features at tokens that follow what the cache holds, (R, L, C)."""
        ...

    def logits(self, hidden_RLC: Tensor) -> Tensor:
        """Of the tokens behind them, (R, L, N): of the codes that `output` has."""
        ...


class GrowingSession:
    """Reads the decided tokens, and drafts from there."""

    def __init__(self, run: Rounds, reader: Reader, shape: Shape, lengths: LengthPolicy) -> None:
        self.reader, self.shape, self.confidence = reader, shape, lengths.confidence
        shape.ready(run.tokens_BL.device)
        self.noise = RoundNoise(run.noise, Stream.DRAFT, shape.nodes)
        self.root_R1C: Tensor | None = None  # features at the last decided token

    def learn(self, run: Rounds, checked: Checked) -> None:
        """Read the decided tokens with the target's own features, in place of the predicted ones of drafting."""
        hidden_RLC, cache = self.reader.read(checked.tokens, checked.features, None), self.reader.cache
        rows, read = self.reader.sampling.rows, checked.tokens.shape[1]
        new_R = checked.gained.repeat(rows)
        if cache is not None:
            lengths = [end - read + more for end, more in zip(cache.lengths, [*checked.new] * rows, strict=True)]
            cache.rewind(lengths, cache.lengths_R - read + new_R)
        self.root_R1C = hidden_RLC if read == 1 else along(hidden_RLC, (new_R - 1).clamp(min=0).unsqueeze(1))

    def propose(self, run: Rounds, depths: PerImage) -> tuple[Draft | None, PerImage]:
        """Level by level; an image stops where its proposer is not sure."""
        assert self.root_R1C is not None
        tree = topology(self.shape.widths[: max(depths.known)], self.shape.chains)
        cache, hidden_RnC, drafted = self.reader.cache, self.root_R1C, depths
        before = None if cache is None else PerImage(cache.lengths, cache.lengths_R)
        tokens: list[Tensor] = []
        masses: list[Tensor] = []
        for level, width in enumerate(tree.widths):
            if level > 0:
                hidden_RnC = self._read(run, tree.levels[level], before, tokens[-1], hidden_RnC, tree)
            positions_Bn = (run.positions_B + level).unsqueeze(1).expand(-1, len(tree.levels[level]))
            logits, what = self.reader.logits(hidden_RnC), f"the draft model's logits from token {min(run.counts)} on"
            chosen = self.reader.sampling.choices(logits, positions_Bn, run.checks, what)
            q_BnV = self.reader.output.spread(self.reader.sampling.head.probabilities(chosen))
            drafted = self._sure(q_BnV, drafted, level)
            if max(drafted.known) <= level:
                break
            tokens.append(self._drawn(run, q_BnV, width, first=tree.levels[level + 1].start - 1))
            masses.append(q_BnV)
        if cache is not None and before is not None:
            cache.rewind(*before)
        passes = self._passes(drafted, depths)
        if not tokens:
            return None, passes
        drawn = topology(tree.widths[: len(tokens)], tree.chains)
        kind: Kind = "distinct" if drawn.siblings > 1 and not drawn.chains else "independent"
        return Draft(torch.cat(tokens, 1), drawn, drafted, torch.cat(masses, 1), kind), passes

    def _passes(self, drafted: PerImage, asked: PerImage) -> PerImage:
        """One for the root, and one for each level after which this image was read."""
        if self.confidence == 0:
            return asked
        known = [min(levels + 1, most) for levels, most in zip(drafted.known, asked.known, strict=True)]
        return PerImage(known, torch.minimum(drafted.tensor + 1, asked.tensor))

    def _read(
        self, run: Rounds, fed: range, before: PerImage | None, tokens_Bn: Tensor, parents_RnC: Tensor, tree: Topology
    ) -> Tensor:
        """Features at the nodes of a level, whose parents' are given."""
        width, branches = tokens_Bn.shape[1] // parents_RnC.shape[1], None
        if before is not None:
            root_R = run.positions_B.repeat(self.reader.sampling.rows)
            branches = tree.branches(fed, before.tensor, root_R, longest=max(before.known), first=1)
        return self.reader.read(tokens_Bn, parents_RnC.repeat_interleave(width, dim=1), branches)

    def _sure(self, q_BnV: Tensor, depths: PerImage, level: int) -> PerImage:
        """The levels that count, cut here where no node has a likely enough token: seen before any is drawn.

        One read by the host, unless the confidence is 0.
        """
        if self.confidence == 0:
            return depths
        sure_B = q_BnV.amax((1, 2)) >= self.confidence
        known = [depth if one else min(depth, level) for depth, one in zip(depths.known, sure_B.tolist(), strict=True)]
        return PerImage(known, torch.where(sure_B, depths.tensor, depths.tensor.clamp(max=level)))

    def _drawn(self, run: Rounds, q_BnV: Tensor, width: int, first: int) -> Tensor:
        """`width` tokens behind each node, (B, n * width): with replacement for chains, else without."""
        nodes = q_BnV.shape[1]
        uniform = self.noise.of(run.round)[:, first : first + nodes * width].unflatten(1, (nodes, width))
        found = []
        for s in range(width):
            # If fewer codes have mass than are requested, `pick` gives the last code, as `Drafted.without` expects.
            token_Bn = pick(q_BnV, uniform[..., s])
            found.append(token_Bn)
            if not self.shape.chains:
                q_BnV = q_BnV.scatter(-1, token_Bn.unsqueeze(-1), 0.0)
        return torch.stack(found, dim=-1).flatten(1)


def work(network: Any, rows: int, codes: tuple[int, ...] | None = None) -> int:
    """Multiply-adds of one pass over one token of an image, half a map behind it; of an output layer of some codes."""
    c = network.config
    return rows * (c.depth * network.layer_work(1, c.tokens // 2) + output_work(network, codes))
