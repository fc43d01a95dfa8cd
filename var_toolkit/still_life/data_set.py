"""Still lifes: a synthetic data set of 1000 classes, one coloured solid on a patterned ground.

label = 100 * solid + 10 * colour + ground, and an image is a pure function of its label and a seed: the same alone or
in any batch, in any process. Nothing is downloaded; `cached` renders a file of images once and reuses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from var_toolkit.still_life.image_cache import SIZE, SPLITS, VERSION, cached, item
from var_toolkit.still_life.names import COLOURS, GROUNDS, SOLIDS, class_name, label_of, parts
from var_toolkit.still_life.ray_tracing import draw, edges, silhouette

__all__ = [
    "COLOURS",
    "GROUNDS",
    "SOLIDS",
    "SPLITS",
    "VERSION",
    "StillLifes",
    "cached",
    "class_name",
    "label_of",
    "parts",
    "render",
    "solid_edges",
    "solid_mask",
]


def render(labels: Sequence[int] | Tensor, seeds: Sequence[int] | Tensor, size: int = SIZE) -> Tensor:
    """Draw one image for each label and seed.

    Args:
        labels: N labels, from 0 to 999.
        seeds: N seeds, from 0 to 2**63 - 1.
        size: width and height in pixels, at least 8.

    Returns:
        uint8 tensor of shape (N, 3, size, size).

    Raises:
        ValueError: if the lengths differ, or a label, a seed or the size is out of range.
    """
    label_list, seed_list = [int(label) for label in labels], [int(seed) for seed in seeds]
    if len(label_list) != len(seed_list):
        raise ValueError(f"there are {len(label_list)} labels but {len(seed_list)} seeds: give one seed for each label")
    _require_size(size)
    images = np.empty((len(label_list), 3, size, size), dtype=np.uint8)
    for index, (label, seed) in enumerate(zip(label_list, seed_list, strict=True)):
        images[index] = draw(parts(label), seed, size)
    return torch.from_numpy(images)


def solid_mask(label: int, seed: int, size: int = SIZE) -> Tensor:
    """Where the solid of a rendered image is, without its shadow: bool (size, size). ValueError as `render`."""
    _require_size(size)
    return torch.from_numpy(silhouette(parts(int(label)), int(seed), size))


def solid_edges(label: int, seed: int, size: int = SIZE) -> Tensor:
    """Where the solid of a rendered image ends, or its surface bends sharply: bool (size, size).

    ValueError as `render`.
    """
    _require_size(size)
    return torch.from_numpy(edges(parts(int(label)), int(seed), size))


def _require_size(size: int) -> None:
    if size < 8:
        raise ValueError(f"size {size} must be at least 8 pixels")


class StillLifes(Dataset[tuple[Tensor, int]]):
    """The first `count` images of a split, rendered on access: item i is (uint8 tensor (3, 64, 64), i % 1000)."""

    def __init__(self, count: int, split: str = "train") -> None:
        """Take `count` images of "train" or "validation". ValueError for another split or a negative count."""
        if count < 0:
            raise ValueError(f"count {count} must not be negative")
        self._items = range(count)
        self._split = split
        item(0, split)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label, seed = item(self._items[index], self._split)
        return render([label], [seed])[0], label
