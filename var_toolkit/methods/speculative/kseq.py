"""K-SEQ (SpecTr, arXiv 2310.15141, section 4): several independent drafts for one position.

Letters: V vocabulary, S drafts for one position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from var_toolkit.methods.speculative.rules import Drafted, Rule, Verdict, normalised, ratio

BISECTIONS = 30


@dataclass(frozen=True)
class KSeq(Rule):
    """A draft is accepted with probability min(1, p / (rho q)), with the smallest rho for which that is still exact.

    One draft makes it the standard rule.
    """

    kinds = ("independent",)

    def judge(self, p: Tensor, drafted: Drafted, uniform: Tensor) -> Verdict:
        assert drafted.q is not None
        siblings = drafted.valid.sum(-1)
        rho = smallest_rho(p, drafted.q, siblings)
        probability = ratio(p.gather(-1, drafted.tokens), rho.unsqueeze(-1) * drafted.q.gather(-1, drafted.tokens))
        accepted = drafted.valid & (uniform < probability)
        count = drafted.tokens.shape[-1]
        choice = torch.where(accepted.any(-1), accepted.int().argmax(-1), count)
        return Verdict(choice, self._left(p, drafted.q, rho, siblings))

    @staticmethod
    def _left(p: Tensor, q: Tensor, rho: Tensor, siblings: Tensor) -> Tensor:
        taken = torch.minimum(q, p / rho.unsqueeze(-1))
        beta = taken.sum(-1)
        share = ((1 - (1 - beta).clamp(min=0) ** siblings) / beta).nan_to_num(0.0)
        return normalised((p - taken * share.unsqueeze(-1)).clamp(min=0.0), p)

    def __str__(self) -> str:
        return "K-SEQ acceptance"


def smallest_rho(p: Tensor, q: Tensor, siblings: Tensor) -> Tensor:
    """The root of 1 - (1 - beta)^S = rho beta with beta = sum min(q, p / rho), from 1 to S: (...).

    Found from above: every rho of at least the root is exact, a smaller one is not.
    """
    low, high = torch.ones_like(siblings, dtype=p.dtype), siblings.clamp(min=1).to(p.dtype)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        beta = torch.minimum(q, p / middle.unsqueeze(-1)).sum(-1)
        enough = 1 - (1 - beta).clamp(min=0) ** siblings <= middle * beta
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high
