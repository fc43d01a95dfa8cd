"""A small classifier of still lifes: judges generated images, and lends its features to a perceptual loss.

Letters: B images, C channels, h and w of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ANSWERS = 10  # solids, colours and grounds: ten of each


@dataclass(frozen=True)
class StillLifeClassifierConfig:
    """Widths of the stages (each but the first halves the image) and of the feature vector."""

    widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    features: int = 128

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if not self.widths or any(width < 8 or width % 8 for width in self.widths):
            raise ValueError(f"widths is {list(self.widths)}; expected a list of multiples of 8")
        if self.features < 1:
            raise ValueError(f"features is {self.features}; expected a number above 0")


class Stage(nn.Module):
    """A convolution that may halve the map, and a residual one."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(before, width, 3, stride=stride, padding=1)
        self.norm1 = nn.GroupNorm(width // 8, width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(width // 8, width)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm1(self.enter(x)))
        return h + F.silu(self.norm2(self.mix(h)))


class Staged(nn.Module):
    """Stages of convolutions, whose maps a perceptual loss compares. Images are float in [-1, 1], (B, 3, h, w)."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        before = (3, *widths[:-1])
        self.stages = nn.ModuleList(Stage(b, w, s) for b, w, s in zip(before, widths, strides, strict=True))

    def levels(self, images: Tensor) -> list[Tensor]:
        """The map after each stage, fine to coarse, each (B, C, h, w)."""
        x, maps = images.contiguous(memory_format=torch.channels_last), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class StillLifeClassifier(Staged):
    """Three answers for each image: solid, colour and ground. Images are float in [-1, 1], (B, 3, h, w)."""

    def __init__(self, config: StillLifeClassifierConfig) -> None:
        super().__init__(config.widths, [1] + [2] * (len(config.widths) - 1))
        self.config = config
        self.project = nn.Linear(2 * config.widths[-1], config.features)
        self.head = nn.Linear(config.features, 3 * ANSWERS)
        self.to(memory_format=torch.channels_last)

    def pool(self, last: Tensor) -> Tensor:
        """The feature vectors of the coarsest maps, (B, features)."""
        return self.project(torch.cat([last.mean((2, 3)), last.amax((2, 3))], dim=1))

    def features(self, images: Tensor) -> Tensor:
        """(B, features)."""
        return self.pool(self.levels(images)[-1])

    def answers(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of solid, colour and ground of feature vectors, each (B, 10), float32."""
        solid, colour, ground = self.head(F.silu(features)).float().split(ANSWERS, dim=1)
        return solid, colour, ground

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of solid, colour and ground, each (B, 10), float32."""
        return self.answers(self.features(images))

    @torch.no_grad()
    def probability(self, images: Tensor, labels_B: Tensor) -> Tensor:
        """The probability of each label, (B,). ValueError for labels that are no still life."""
        if bool(((labels_B < 0) | (labels_B >= ANSWERS**3)).any()):
            raise ValueError(f"the classifier judges classes 0 to {ANSWERS**3 - 1}; an image without a class has none")
        truth = (labels_B // 100, labels_B // 10 % 10, labels_B % 10)
        log = [F.log_softmax(x, 1).gather(1, y[:, None]) for x, y in zip(self(images), truth, strict=True)]
        return torch.cat(log, dim=1).sum(1).exp()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The label 100 * solid + 10 * colour + ground, (B,) int64."""
        solid, colour, ground = (logits.argmax(dim=1) for logits in self(images))
        return 100 * solid + 10 * colour + ground


NETWORKS = {"StillLifeClassifier": "classifier"}
MODELS = {
    "stilllife-classifier": {
        "summary": "judges which still life an image shows",
        "embedded": {"classifier": "stilllife-classifier"},
    },
}  # fmt: skip
