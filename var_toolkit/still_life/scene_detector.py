"""A small detector of the solids in a scene: judges drawn scenes, and lends its features to a perceptual loss.

In the manner of CenterNet (arXiv 1904.07850): a map says where the middle of a solid is, and there what it is.
Letters: B images, C channels, h and w of a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from var_toolkit.still_life.classifier import Staged
from var_toolkit.still_life.scenes import COLOURS, GROUNDS, LIGHTS, SIZES, SOLIDS

STRIDES = (2, 2, 2, 1)
CELL = 8  # pixels
PRESENT = 0.3  # least probability of a solid that counts; lower than a half, since the focal loss makes it cautious
MOST = 5  # solids found in an image


@dataclass(frozen=True)
class SceneDetectorConfig:
    """Widths of the four stages; the first three halve the image."""

    widths: tuple[int, int, int, int] = (24, 48, 96, 128)

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if len(self.widths) != len(STRIDES) or any(width < 8 or width % 8 for width in self.widths):
            raise ValueError(f"widths is {list(self.widths)}; expected a list of four multiples of 8")


class Seen(NamedTuple):
    """The detector's answers as logits, and where solids touch the ground."""

    presence: Tensor  # (B, h, w)
    solid: Tensor  # (B, h, w, 8)
    colour: Tensor  # (B, h, w, 8)
    size: Tensor  # (B, h, w, 2)
    foot: Tensor  # (B, h, w): row of the foot, 0 at the top and 1 at the bottom
    ground: Tensor  # (B, 6)
    light: Tensor  # (B, 3)


class Found(NamedTuple):
    """A solid in an image; x from left to right, foot from top to bottom, both from 0 to 1."""

    solid: str
    colour: str
    size: str
    x: float
    foot: float


class FoundScene(NamedTuple):
    """What an image shows."""

    things: tuple[Found, ...]
    ground: str
    light: str


class SceneDetector(Staged):
    """What a scene shows. Images are float in [-1, 1], (B, 3, h, w), with h and w multiples of 8."""

    def __init__(self, config: SceneDetectorConfig) -> None:
        super().__init__(config.widths, STRIDES)
        self.config = config
        self.parts = (1, len(SOLIDS), len(COLOURS), len(SIZES), 1)
        self.there = nn.Conv2d(config.widths[-1], sum(self.parts), 1)
        self.whole = nn.Linear(config.widths[-1], len(GROUNDS) + len(LIGHTS))
        assert self.there.bias is not None
        nn.init.constant_(self.there.bias[:1], -4.0)  # most cells are empty
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Seen:
        """The answers for images, float32."""
        last = self.levels(images)[-1]
        presence, solid, colour, size, foot = self.there(last).float().permute(0, 2, 3, 1).split(self.parts, dim=-1)
        ground, light = self.whole(last.mean((2, 3))).float().split((len(GROUNDS), len(LIGHTS)), dim=1)
        return Seen(presence.squeeze(-1), solid, colour, size, foot.squeeze(-1), ground, light)

    @torch.no_grad()
    def find(self, images: Tensor) -> list[FoundScene]:
        """What each image shows. A solid is where presence is `PRESENT` or more and higher than in the cells around."""
        seen = self(images)
        score = seen.presence.sigmoid()
        peak = F.max_pool2d(score.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
        score = torch.where((score == peak) & (score >= PRESENT), score, 0.0)
        return [self._scene(seen, score, image) for image in range(len(images))]

    def _scene(self, seen: Seen, score_Bhw: Tensor, b: int) -> FoundScene:
        width = score_Bhw.shape[-1]
        best, cells = score_Bhw[b].flatten().topk(MOST)
        things = []
        for cell in cells[best > 0].tolist():
            row, column = divmod(cell, width)
            solid, colour, size = (int(part[b, row, column].argmax()) for part in (seen.solid, seen.colour, seen.size))
            x, foot = (column + 0.5) / width, float(seen.foot[b, row, column])
            things.append(Found(SOLIDS[solid], COLOURS[colour], tuple(SIZES)[size], x, foot))
        ground, light = GROUNDS[int(seen.ground[b].argmax())], LIGHTS[int(seen.light[b].argmax())]
        return FoundScene(tuple(things), ground, light)


NETWORKS = {"SceneDetector": "classifier"}
MODELS = {
    "scenes-detector": {
        "summary": "judges what a scene shows",
        "embedded": {"classifier": "scenes-detector"},
    },
}  # fmt: skip
