"""Speculative Jacobi decoding (arXiv 2410.01699): the target's own last pass drafts the next window.

Letters: B images, N drafts, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.core.filters import pick
from var_toolkit.core.noise import RoundNoise, Stream
from var_toolkit.methods.speculative.drafts import Draft, PerImage, topology
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
        self.known_B = torch.zeros(run.images, dtype=torch.int64, device=device)
        # The drafts that are drawn, then the random ones.
        self.noise = RoundNoise(run.noise, Stream.DRAFT, settings.window + count)

    def learn(self, run: Rounds, checked: Checked) -> None:
        """Draft every position after the decided tokens that the last pass has seen."""
        if checked.draft is None:
            return
        count = checked.p.shape[1] - 1  # drafts of the last pass
        tokens = pick(self._masses(checked), self.noise.of(run.round)[:, : count + 1])
        if self.settings.keep:
            accepted = F.pad(checked.judgement.choice == 0, (0, 1))
            tokens = torch.where(accepted, F.pad(checked.draft.tokens, (0, 1)), tokens)
        ranks_N = torch.arange(self.tokens_BN.shape[1], device=tokens.device)
        taken_BN = (checked.gained.unsqueeze(1) + ranks_N).clamp(max=count)
        self.tokens_BN, self.q_BNV = tokens.gather(1, taken_BN), along(checked.p, taken_BN)
        # Of a window that counted only up to some depth, the position after it is the last with valid logits.
        self.known_B = checked.draft.depths.tensor + 1 - checked.gained

    def _masses(self, checked: Checked) -> Tensor:
        """The distribution of a new draft after each node, (B, 1 + N, V)."""
        if not self.settings.keep:
            return checked.p
        return torch.cat((checked.judgement.residual, checked.p[:, -1:]), dim=1)

    def propose(self, run: Rounds, depths: PerImage) -> tuple[Draft | None, PerImage]:
        deepest = max(depths.known)
        tokens_BN, q_BNV = self._started(run, deepest)
        return Draft(tokens_BN, topology((1,) * deepest), depths, q_BNV, "independent"), run.none

    def _started(self, run: Rounds, count: int) -> tuple[Tensor, Tensor]:
        """The drafts of `count` positions and what they were drawn from; certain ones where no pass has seen any."""
        tokens_BN, q_BNV = self.tokens_BN[:, :count], self.q_BNV[:, :count]
        ranks_N = torch.arange(count, device=tokens_BN.device)
        unseen_BN = ranks_N >= self.known_B.unsqueeze(1)
        tokens_BN = torch.where(unseen_BN, self._certain(run, tokens_BN, q_BNV, unseen_BN), tokens_BN)
        unseen_BN1, tokens_BN1 = unseen_BN.unsqueeze(-1), tokens_BN.unsqueeze(-1)
        own_BN1 = q_BNV.gather(-1, tokens_BN1).masked_fill(unseen_BN1, 1.0)
        return tokens_BN, q_BNV.masked_fill(unseen_BN1, 0.0).scatter_(-1, tokens_BN1, own_BN1)

    def _certain(self, run: Rounds, tokens_BN: Tensor, q_BNV: Tensor, unseen_BN: Tensor) -> Tensor:
        """A draft for each unseen position, (B, N): its own random one, or that of the nearest position to the left
        that is not an unseen one behind the first column."""
        count = tokens_BN.shape[1]
        random_BN = (self.noise.of(run.round)[:, self.settings.window :][:, :count] * self.vocabulary).long()
        if self.settings.start == "random":
            return random_BN
        ranks_N = torch.arange(1, count + 1, device=tokens_BN.device)
        first_column_BN = (run.positions_B.unsqueeze(1) + ranks_N - 1) % self.side == 0
        source_BN = torch.where(unseen_BN & ~first_column_BN, 0, ranks_N).cummax(1).values  # 0: the last decided token
        shown_BN = q_BNV.argmax(-1) if self.settings.start == "likeliest" else tokens_BN
        shown_BN = torch.where(unseen_BN, random_BN, shown_BN)
        return torch.cat((run.last(), shown_BN), dim=1).gather(1, source_BN)
