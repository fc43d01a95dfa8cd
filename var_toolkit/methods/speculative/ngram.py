"""Drafts without a network: what has followed these neighbours before (after ADED, arXiv 2406.18485).

ADED's table holds sequences of words; an image token has a left and an upper neighbour, so this table holds both.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from var_toolkit.methods.speculative.drafts import Draft, PerImage, Topology, topology
from var_toolkit.methods.speculative.growing import Shape
from var_toolkit.methods.speculative.lengths import LengthPolicy
from var_toolkit.methods.speculative.verify import Checked, Proposer, Rounds


@dataclass(frozen=True)
class NGram(Proposer):
    """Certain drafts from a table that each image fills as it grows."""

    shape: Shape

    @property
    def nodes(self) -> int:
        return self.shape.nodes

    def begin(self, run: Rounds, lengths: LengthPolicy) -> NGramSession:
        return NGramSession(self.shape, run)

    def __str__(self) -> str:
        return f"n-gram drafts{self.shape}"


class Table:
    """What followed a left neighbour, an upper one, and both, in one image."""

    def __init__(self, side: int, vocabulary: int) -> None:
        self.side, self.vocabulary = side, vocabulary
        self.tokens: list[int] = []
        self.seen: defaultdict[Hashable, Counter[int]] = defaultdict(Counter)

    def add(self, token: int) -> None:
        """The next token of the image."""
        for context in self._contexts(self._left(), self._up(len(self.tokens))):
            self.seen[context][token] += 1
        self.tokens.append(token)

    def guesses(self, left: int, position: int) -> Iterator[int]:
        """Tokens for the position after `left`, the most frequent first, each once."""
        given: set[int] = set()
        for token in self._ranked(left, self._up(position)):
            if token not in given:
                given.add(token)
                yield token

    def _ranked(self, left: int, up: int | None) -> Iterator[int]:
        for context in self._contexts(left, up):
            if context in self.seen:
                yield from (token for token, _ in self.seen[context].most_common())
        yield left
        if up is not None:
            yield up
        yield from range(self.vocabulary)

    def _left(self) -> int | None:
        return self.tokens[-1] if self.tokens else None

    def _up(self, position: int) -> int | None:
        above = position - self.side
        return self.tokens[above] if 0 <= above < len(self.tokens) else None

    @staticmethod
    def _contexts(left: int | None, up: int | None) -> list[Hashable]:
        """The most specific first."""
        both: list[Hashable] = [("both", left, up)] if left is not None and up is not None else []
        return both + [(name, token) for name, token in (("left", left), ("up", up)) if token is not None]


class NGramSession:
    """A table for each image, so that none depends on the others of its batch."""

    def __init__(self, shape: Shape, run: Rounds) -> None:
        config = run.network.config
        self.shape = shape
        shape.ready(run.tokens_BL.device)
        self.tables = [Table(config.side, config.vocab_size) for _ in run.counts]
        begun = run.tokens_BL[:, : run.first].tolist() if run.first else []  # which the host waits for
        for table, tokens in zip(self.tables, begun, strict=False):
            for token in tokens:
                table.add(token)

    def learn(self, run: Rounds, checked: Checked) -> None:
        for table, tokens in zip(self.tables, checked.listed, strict=True):
            for token in tokens:
                table.add(token)

    def propose(self, run: Rounds, depths: PerImage) -> tuple[Draft | None, PerImage]:
        """One copy to the device, of the drafts: the tables are on the host."""
        tree = topology(self.shape.widths[: max(depths.known)])
        tokens_BN = torch.tensor([self._grown(table, tree) for table in self.tables]).to(run.tokens_BL.device)
        return Draft(tokens_BN, tree, depths, None, "certain"), run.none

    @staticmethod
    def _grown(table: Table, tree: Topology) -> list[int]:
        """The tokens of a tree, level by level."""
        nodes = [table.tokens[-1]]
        for depth, width in enumerate(tree.widths):
            position = len(table.tokens) + depth
            for node in tree.levels[depth]:
                nodes += islice(table.guesses(nodes[node], position), width)
        return nodes[1:]
