"""A small network that tells from the latent after a coarse scale how probable it is that the image will be right.

After LSRS, which chooses among candidates of a coarse scale before the finer ones are drawn. Its scorer has not been
released; the layers here are ours. Letters: B images, C channels, h and w of the finest map.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class LatentScorerConfig:
    """The scales after which it scores, counted from 0 and without that, and its sizes.

    A latent is averaged over `cells` x `cells` regions before it is read.
    """

    scales: tuple[int, ...] = field(default=(1, 2), metadata={"range": (1, 63)})
    latent_channels: int = 32
    side: int = 16  # of the finest map
    num_classes: int = 1000
    cells: int = field(default=4, metadata={"range": (1, 64)})
    width: int = field(default=32, metadata={"range": (1, 65_536)})

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if not self.scales or sorted({*self.scales}) != list(self.scales):
            raise ValueError(f"scales is {list(self.scales)}; expected increasing numbers of scales, such as [1, 2]")
        if self.cells > self.side:
            raise ValueError(f"cells is {self.cells}; expected at most side, {self.side}")


class LatentScorer(nn.Module):
    """Latents and labels -> logits of the probability that the finished images show their classes.

    The null class is `num_classes`.
    """

    def __init__(self, config: LatentScorerConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.cells = nn.Linear(config.latent_channels * config.cells**2, 2 * width)
        self.scale = nn.Parameter(torch.zeros(len(config.scales), 2 * width))
        self.mix = nn.Linear(2 * width, width)
        # Not nn.Embedding(n, c): its initialisation imports torch.compile on the meta device.
        self.class_emb = nn.Embedding.from_pretrained(torch.zeros(config.num_classes + 1, width), freeze=False)
        self.compare = nn.Linear(3 * width, width)
        self.answer = nn.Linear(width, 1)

    def forward(self, latent_BChw: Tensor, labels_B: Tensor, scale: int) -> Tensor:
        """The logits (B,), of the latent after a scale that the network was made for."""
        cells = self.config.cells
        read = self.cells(F.adaptive_avg_pool2d(latent_BChw.to(self.cells.weight.dtype), cells).flatten(1))
        seen = F.silu(self.mix(F.silu(read + self.scale[self.config.scales.index(scale)])))
        wanted = self.class_emb(labels_B)
        both = torch.cat((seen, wanted, seen * wanted), dim=1)
        found: Tensor = self.answer(F.silu(self.compare(both))).squeeze(1)
        return found

    def work(self) -> int:
        """Multiply-adds of one latent."""
        layers = (self.cells, self.mix, self.compare, self.answer)
        return sum(layer.in_features * layer.out_features for layer in layers)


NETWORKS = {"LatentScorer": "scorer"}
