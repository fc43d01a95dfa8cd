"""Speculative Jacobi decoding (arXiv 2410.01699): the target's own last pass drafts the next window.

Letters: B images, N drafts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.core.filters import pick
from var_toolkit.core.noise import Stream
from var_toolkit.methods.speculative.drafts import Draft, topology
from var_toolkit.methods.speculative.lengths import LengthPolicy
from var_toolkit.methods.speculative.verify import Checked, Proposer, Rounds, along

Start = Literal["random", "repeat", "likeliest"]
STARTS: tuple[Start, ...] = get_args(Start)


@dataclass(frozen=True)
class Jacobi(Proposer):
    """Positions after a rejection are drafted from the last distribution of the target there, of an older context.

    Positions without one `start` with certain drafts (section 4.2 of the paper): a `random` token, a `repeat` of the
    left neighbour's, or the `likeliest` of what the left neighbour's draft came from; in the first column always a
    random one. With `keep` (adaptive continuation of SJD-PAC) drafts after a rejection are judged too, and those
    that are accepted there are drafted again, so that consecutive rounds differ as little as possible.
    """

    window: int
    start: Start = "repeat"
    keep: bool = False

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"jacobi_start is {self.start!r}; it must be one of {', '.join(STARTS)}")

    @property
    def nodes(self) -> int:
        return self.window - 1

    def begin(self, run: Rounds, lengths: LengthPolicy) -> JacobiSession:
        return JacobiSession(self, run)

    def __str__(self) -> str:
        return f"Jacobi drafts, {self.start} start" + (", kept behind rejections" if self.keep else "")


class JacobiSession:
    """The window of each image: drafts, what they were drawn from, and how many there are."""

    def __init__(self, settings: Jacobi, run: Rounds) -> None:
        self.settings, self.side = settings, run.network.config.side
        self.vocabulary = run.network.config.vocab_size
        count, device = settings.nodes, run.tokens_BL.device
        self.tokens_BN = torch.zeros(run.images, count, dtype=torch.int64, device=device)
        self.q_BNV = torch.zeros(run.images, count, self.vocabulary, device=device)
        self.known = [0] * run.images

    def learn(self, run: Rounds, checked: Checked) -> None:
        """Draft every position after the decided tokens that the last pass has seen."""
        if checked.draft is None:
            self.known = [0] * run.images
            return
        count = checked.p.shape[1] - 1  # drafts of the last pass
        uniform_BN = run.noise.uniform(Stream.DRAFT, 0, count + 1, attempt=run.round)
        tokens = pick(self._masses(checked), uniform_BN)
        if self.settings.keep and checked.verdict is not None:
            accepted = F.pad(checked.verdict.choice == 0, (0, 1))
            tokens = torch.where(accepted, F.pad(checked.draft.tokens, (0, 1)), tokens)
        new_B = torch.tensor(checked.new).to(tokens.device)
        shift_BN = new_B.unsqueeze(1) + torch.arange(self.tokens_BN.shape[1], device=tokens.device)
        taken_BN = shift_BN.clamp(max=count)
        self.tokens_BN, self.q_BNV = tokens.gather(1, taken_BN), along(checked.p, taken_BN)
        # Of a window that counted only up to some depth, the position after it is the last with valid logits.
        self.known = [max(0, depth + 1 - new) for depth, new in zip(checked.draft.depths, checked.new, strict=True)]

    def _masses(self, checked: Checked) -> Tensor:
        """The distribution of a new draft after each node, (B, 1 + N, V)."""
        if not self.settings.keep or checked.verdict is None:
            return checked.p
        return torch.cat((checked.verdict.residual, checked.p[:, -1:]), dim=1)

    def propose(self, run: Rounds, depths: Sequence[int]) -> tuple[Draft | None, list[int]]:
        deepest = max(depths)
        self._start(run, deepest)
        tokens, q = self.tokens_BN[:, :deepest], self.q_BNV[:, :deepest]
        return Draft(tokens, topology((1,) * deepest), depths, q, "independent"), [0] * run.images

    def _start(self, run: Rounds, deepest: int) -> None:
        """Fill the positions up to `deepest` that no pass has seen, from left to right: one may repeat another."""
        if min(self.known) >= deepest:
            return
        fresh_BN = self._random(run, deepest)
        positions_BN = run.positions_B.unsqueeze(1) + torch.arange(deepest, device=fresh_BN.device)
        left_B = run.last().squeeze(1)
        known_B = torch.tensor(self.known).to(fresh_BN.device)
        self.q_BNV, self.tokens_BN = self.q_BNV.clone(), self.tokens_BN.clone()
        for n in range(deepest):
            token_B = fresh_BN[:, n]
            if self.settings.start != "random":
                token_B = torch.where(positions_BN[:, n] % self.side == 0, token_B, left_B)
            unseen_B = n >= known_B
            token_B = torch.where(unseen_B, token_B, self.tokens_BN[:, n])
            self.tokens_BN[:, n] = token_B
            certain_BV = F.one_hot(token_B, self.vocabulary).to(self.q_BNV.dtype)
            self.q_BNV[:, n] = torch.where(unseen_B.unsqueeze(-1), certain_BV, self.q_BNV[:, n])
            left_B = self.q_BNV[:, n].argmax(-1) if self.settings.start == "likeliest" else token_B

    def _random(self, run: Rounds, count: int) -> Tensor:
        """Uniformly random tokens, (B, N); their noise follows that of the drafts that are drawn."""
        uniform_BN = run.noise.uniform(Stream.DRAFT, self.settings.window, count, attempt=run.round)
        return (uniform_BN * self.vocabulary).long()
