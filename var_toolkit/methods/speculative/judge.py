"""Judge Decoding (arXiv 2501.19309): a draft is also accepted if a trained judge finds it right.

The standard rule rejects drafts that the target would rarely draw, though they are as good as what it draws. A linear
judge on the target's features at the draft, which the verifying pass computes anyway, sees some of these. So the
distribution changes, with no bound. Published: up to 9 times faster for Llama-3.1-405B with drafts by the 8B model. The
residual of a rejection is that of the standard rule. Under guidance the judge reads the features of the conditional
half.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from var_toolkit.formats.directory import CONFIG, load_network
from var_toolkit.methods.speculative.rules import Drafted, Standard
from var_toolkit.models.judge_head import JudgeHead, log_odds
from var_toolkit.ranges import checked
from var_toolkit.registry import Embedded


@dataclass(frozen=True)
class Judged(Standard):
    """Accepts what the standard rule accepts, and a draft that is right with more probability than `threshold`.

    `weights` and `bias` are those of a `JudgeHead`. With a threshold of 1 this is the standard rule.
    """

    weights: tuple[float, ...]
    bias: float
    threshold: float = 0.5
    vector: Tensor | None = field(default=None, init=False, compare=False, repr=False)  # on the device

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", checked("judge_threshold", self.threshold))

    @classmethod
    def by(cls, head: JudgeHead, threshold: float = 0.5) -> Judged:
        """With a trained head."""
        return cls(tuple(head.linear.weight[0].tolist()), head.linear.bias.item(), threshold)

    def require_fit(self, target: Any) -> None:
        """ValueError if the judge was trained on features of another width."""
        width = target.config.embed_dim
        if len(self.weights) != width:
            raise ValueError(f"the judge reads {len(self.weights)} features, but the target has {width}; use its own")

    def bound(self, pyramid: Any) -> Judged:
        """With the weights on the device of a tokenizer."""
        made = copy(self)
        object.__setattr__(made, "vector", torch.tensor(self.weights).to(pyramid.embedding.weight.device))
        return made

    def opinion(self, features: Tensor) -> Tensor:
        """The probability that tokens are right, from the target's features at them."""
        vector = torch.tensor(self.weights) if self.vector is None else self.vector
        return log_odds(features, vector, self.bias).sigmoid()

    def accepting(self, p: Tensor, drafted: Drafted, sibling: int) -> Tensor:
        standard = super().accepting(p, drafted, sibling)
        if drafted.opinion is None:
            raise ValueError("a judge needs the target's features at the drafts")
        return torch.where(drafted.opinion[..., sibling] > self.threshold, 1.0, standard)

    def __str__(self) -> str:
        return f"judge of {len(self.weights)} features, threshold {self.threshold}"


def read_judge(name: str) -> JudgeHead:
    """The judge in a directory, or that comes with the package. ValueError of one line if there is none."""
    if not name.strip():
        raise ValueError("the judge's name is empty; give one of the package, or the final/ of a run")
    folder = Path(name) if (Path(name) / CONFIG).is_file() else Embedded.folder(name)
    if not folder.is_dir():
        raise ValueError(f"judge {name}: no such network comes with the package; give the final/ of a run")
    found = load_network(folder)
    if not isinstance(found, JudgeHead):
        raise ValueError(f"judge {name} holds a {type(found).__name__}; it must hold a JudgeHead")
    return found
