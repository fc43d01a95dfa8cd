"""The judge of Judge Decoding (arXiv 2501.19309): a linear layer says of a token whether it is right, in its context.

It reads the last features of a GPT (`models.llamagen`) at the token itself, which the GPT has read. Published with one
weight for each feature, 8 to 16 thousand, for language models.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class JudgeHeadConfig:
    """The width of the target."""

    embed_dim: int = 768

    def __post_init__(self) -> None:
        if self.embed_dim < 1:
            raise ValueError(f"embed_dim is {self.embed_dim}; it must be a positive integer")


class JudgeHead(nn.Module):
    """Features at tokens (..., C) -> the log-odds that each is right, (...)."""

    def __init__(self, config: JudgeHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.embed_dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(..., C) -> (...)."""
        return log_odds(features, self.linear.weight[0], self.linear.bias)


def log_odds(features: Tensor, weight_C: Tensor, bias: Tensor | float) -> Tensor:
    """The same from the weights alone; features count at unit scale, since those before the last norm have any."""
    even = F.rms_norm(features.float(), features.shape[-1:])
    return (even * weight_C).sum(-1) + bias


NETWORKS = {"JudgeHead": "judge"}
MODELS = {
    "stilllife-gpt-judge": {
        "summary": "a judge of the drafts for stilllife-gpt",
        "embedded": {"judge": "stilllife-gpt-judge"},
    },
}
