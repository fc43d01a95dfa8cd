"""The head of Distilled Decoding (arXiv 2412.17153): from noise to all tokens in one pass, without drawing.

A distilled network has two outputs at each token. The coarse ones are the likeliest codes by its logits, the others the
embeddings that it predicts, which go to the decoder as they are. Chance is in the noise that the network reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from var_toolkit.heads.head import Drawn, Head, Setting
from var_toolkit.ranges import checked, flag


@dataclass(frozen=True)
class OneShot(Head):
    """How the outputs of a distilled network become tokens.

    The first `coded` tokens of the pyramid are codes, the others embeddings. With `snapped` these, too, become the
    nearest codes, because another network reads them.
    """

    coded: int = 0
    snapped: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "coded", checked("coded", self.coded))
        object.__setattr__(self, "snapped", flag("snapped", self.snapped))

    def is_guided(self, guidance: float) -> bool:
        """Distilled networks have learned the guided teacher; they have no guidance of their own."""
        return False

    def draw(self, hidden_RLC: torch.Tensor, at: Setting) -> Drawn:
        """The tokens of some features; of embeddings the nearest codes, beside the embeddings themselves."""
        count = self.coded_of(at.first, at.count)
        network, pyramid = at.network, at.pyramid
        logits = network.logits(at.condition, hidden_RLC[:, :count])
        embeddings = network.embeddings(at.condition, hidden_RLC[:, count:])
        for values, what in ((logits, "the logits"), (embeddings, "the embeddings")):
            if values.shape[1]:
                at.note(values, what, 0.0)
        codes = logits.argmax(dim=-1)
        tokens = torch.cat((codes, pyramid.nearest(embeddings)), dim=1)
        if self.snapped:
            return Drawn(tokens, None, None)
        return Drawn(tokens, torch.cat((pyramid.embed(codes), embeddings), dim=1), None)

    def coded_of(self, first: int, count: int) -> int:
        """How many of `count` tokens from `first` on are codes."""
        return min(max(self.coded - first, 0), count)

    def shown(self, guidance: float) -> list[str]:
        """The settings in words."""
        return [f"first {self.coded} tokens as codes", *(["the others as their nearest codes"] if self.snapped else [])]
