"""The quality of a row's images: class agreement, and the Fréchet distance of the embedded classifier's features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from var_toolkit.still_life.quality import ENOUGH, class_agreement, embedded_distance, fresh_statistics

RENDERINGS = ENOUGH


def judge(path: Path, classes: int, cache: Path) -> dict[str, Any]:
    """Judge the images in a file, uint8 (N, 3, 64, 64), image i of class i % classes.

    The statistics of the reference renderings are computed once and stored in the folder `cache`.
    """
    images = torch.from_numpy(np.load(path))
    reference = fresh_statistics(RENDERINGS, cached=cache / "still-life-statistics.npz")
    return {
        "images": len(images),
        "renderings": RENDERINGS,
        "class_agreement": class_agreement(images, torch.arange(len(images)) % classes),
        "distance": embedded_distance(images, reference),
    }
