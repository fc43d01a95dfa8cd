"""The quality of a row's images: class agreement and a Fréchet distance, or how often prompts of scenes are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from var_toolkit.evaluation.bench.table import Row
from var_toolkit.still_life.quality import ENOUGH, class_agreement, embedded_distance, fresh_statistics
from var_toolkit.still_life.scene_judge import prompts
from var_toolkit.still_life.scene_quality import prompt_scores

RENDERINGS = ENOUGH


def prompts_of(row: Row, least: int) -> list[str]:
    """The prompts of a row of a model of text: its own, or at least as many of those that judge models of scenes."""
    return list(row.prompts) or [one.caption.text for one in prompts(max(least, row.quality))]


def judge(path: Path, classes: int | None, cache: Path) -> dict[str, Any]:
    """Judge the images in a file, uint8 (N, 3, h, w): image i of class i % classes, or of the i-th prompt of scenes.

    The statistics of the reference renderings are computed once and stored in the folder `cache`.
    """
    images = torch.from_numpy(np.load(path))
    if classes is None:
        scores = prompt_scores(images, prompts(len(images)))
        return {"images": len(images), "prompts_right": scores.whole, "categories": scores.categories}
    reference = fresh_statistics(RENDERINGS, cached=cache / "still-life-statistics.npz")
    return {
        "images": len(images),
        "renderings": RENDERINGS,
        "class_agreement": class_agreement(images, torch.arange(len(images)) % classes),
        "distance": embedded_distance(images, reference),
    }
