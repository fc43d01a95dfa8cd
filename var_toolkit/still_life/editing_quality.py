"""Quality of editing, by the embedded classifier: the solids of rendered still lifes are replaced by others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from var_toolkit.images import as_output, to_uint8
from var_toolkit.pipeline import Pipeline
from var_toolkit.still_life.data_set import SOLIDS, render, solid_mask
from var_toolkit.still_life.quality import Agreement, agreement

MARGIN = 3  # pixels around the solid that are inpainted as well
FIRST_SEED = 10**9  # of the images; no training uses these seeds


@dataclass(frozen=True)
class Replacement:
    """A rendered still life, the box around its solid, and the class of the solid that replaces it."""

    image: Any  # of PIL
    box: tuple[int, int, int, int]  # x, y, width, height
    label: int
    seed: int


def replacements(count: int) -> Iterator[Replacement]:
    """A fixed list of cases of any class: another solid, the same colour and ground."""
    generator = random.Random(0)
    for number in range(count):
        label = generator.randrange(1000)
        other = (label + 100 * generator.randrange(1, len(SOLIDS))) % 1000
        seed = FIRST_SEED + number
        (image,) = as_output(render([label], [seed]) / 127.5 - 1, "pil")
        yield Replacement(image, _box(solid_mask(label, seed)), other, number)


def replacement_agreement(pipe: Pipeline, count: int, **how: Any) -> Agreement:
    """Share of `count` edits in which the classifier recognises the new class; `how` are keywords of `edit`."""
    found, labels = [], []
    for case in replacements(count):
        drawn: Any = pipe.edit(case.image, case.box, case.label, seeds=case.seed, output_type="pt", **how)
        found.append(to_uint8(drawn.images))
        labels.append(case.label)
    return agreement(torch.cat(found), torch.tensor(labels))


def _box(mask_HW: Tensor) -> tuple[int, int, int, int]:
    """The bounding box of the true pixels plus a margin: x, y, width, height."""
    ends = []
    for dim, length in ((0, mask_HW.shape[1]), (1, mask_HW.shape[0])):
        true = mask_HW.any(dim).nonzero().flatten().tolist()
        ends.append((max(true[0] - MARGIN, 0), min(true[-1] + 1 + MARGIN, length)))
    (left, right), (top, bottom) = ends
    return left, top, right - left, bottom - top
