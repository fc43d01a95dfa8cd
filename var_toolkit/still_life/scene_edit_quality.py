"""Quality of editing by instructions: how often edited scenes show what was asked for, and all the rest as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.image_conditions import require_image
from var_toolkit.pipeline import Pipeline
from var_toolkit.progress import Progress
from var_toolkit.still_life.scene_data import edited, numbered
from var_toolkit.still_life.scene_drawing import SIZE
from var_toolkit.still_life.scene_edits import (
    KINDS,
    Edit,
    EditVerdict,
    Instruction,
    inverted,
    judge_edit,
    pair_of,
    unseen_instruction,
)
from var_toolkit.still_life.scene_quality import BATCH, embedded_detector, reconstructed

ALL = "all"
SPLIT = "validation"
MARGIN = 8  # pixels around what an edit changes that no PSNR counts: a tokenizer blurs across the border
LEAST = 0.05  # share of the pixels that an edit must leave as they are for a PSNR of the rest
BEST = 60.0  # dB of images that are equal


class Case(NamedTuple):
    """An edit, its instruction, and both renderings, uint8 (3, 128, 128)."""

    edit: Edit
    asked: Instruction
    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class EditScores:
    """Shares of images from 0 to 1, by `judge_edit`, and the mean PSNR of what the edit does not touch, in dB.

    The PSNR is that against the source as the tokenizer returns it; None for edits that change every pixel.
    """

    followed: float
    kept: float
    both: float
    psnr: float | None


@dataclass(frozen=True)
class EditReport:
    """What a model makes of edits, beside renderings of the scenes that are asked for, and their reconstructions."""

    sources: Tensor  # uint8 (B, 3, 128, 128)
    images: Tensor  # likewise, of the model
    columns: dict[str, dict[str, EditScores]]  # "model", "renderings", "reconstructions" -> kind of edit, or "all"


def cases(total: int) -> list[Case]:
    """The first `total` edits of scenes that are never trained on, of all kinds in turn. ValueError if below 1."""
    if total < 1:
        raise ValueError(f"the number of edits is {total}; it must be at least 1")
    numbers = {kind: _numbers(kind) for kind in KINDS}
    with Progress(total, "pairs", what="rendering scenes") as bar:
        found = []
        for number in range(total):
            found.append(_case(next(numbers[KINDS[number % len(KINDS)]])))
            bar.update(1)
    return found


def _numbers(kind: str) -> Iterator[int]:
    return (number for number in count() if pair_of(number, SPLIT).kind == kind)


def _case(number: int) -> Case:
    edit = pair_of(number, SPLIT)
    images = [torch.from_numpy(draw(number, SPLIT)) for draw in (numbered, edited)]
    source, target = reversed(images) if inverted(number, 0) else images
    return Case(edit, unseen_instruction(edit, number), source, target)


def edit_report(pipe: Pipeline, total: int, *, seed: int = 0, settings: Mapping[str, Any] | None = None) -> EditReport:
    """Scores of a model that edits by instructions over `total` edits; image i has the seed `seed` + i.

    ValueError if the model does not edit by instructions, or draws images of another size than scenes have.
    """
    require_image(pipe.backbone, source=True, control=False)
    if pipe.tokenizer.image_side != SIZE:
        raise ValueError(f"this model draws {pipe.tokenizer.image_side} px; scenes have {SIZE} px")
    asked = cases(total)
    sources, targets = (torch.stack([getattr(one, name) for one in asked]) for name in ("source", "target"))
    before, after = (torch.cat([reconstructed(pipe, part) for part in x.split(BATCH)]) for x in (sources, targets))
    made = _edited(pipe, asked, seed, settings)
    shown = {"model": made, "renderings": targets, "reconstructions": after}
    return EditReport(sources, made, {name: edit_scores(images, asked, before) for name, images in shown.items()})


def _edited(pipe: Pipeline, asked: Sequence[Case], seed: int, settings: Mapping[str, Any] | None) -> Tensor:
    plan, made = pipe.plan(**(settings or {})), []
    with Progress(len(asked), "images", what="editing scenes") as bar:
        for number, one in enumerate(asked):
            image = one.source.permute(1, 2, 0).numpy()
            how: Any = {"instruction": one.asked.text, "seeds": seed + number, "plan": plan, "output_type": "pt"}
            (drawn,) = pipe.edit(image, **how).images  # type: ignore[union-attr]
            made.append((drawn * 255).round().to(torch.uint8).cpu())
            bar.update(1)
    return torch.stack(made)


@torch.inference_mode()
def edit_scores(images_B3hw: Tensor, asked: Sequence[Case], before_B3hw: Tensor) -> dict[str, EditScores]:
    """Scores of edited uint8 images by kind and over all, beside their sources as the tokenizer returns them.

    All are (B, 3, 128, 128). ValueError if there are not as many as edits.
    """
    if not len(images_B3hw) == len(before_B3hw) == len(asked) > 0:
        raise ValueError(f"there are {len(images_B3hw)} images and {len(asked)} edits; give one edit per image")
    detector = embedded_detector()
    found = [scene for part in images_B3hw.split(BATCH) for scene in detector.find(part / 127.5 - 1)]
    verdicts = [judge_edit(one.edit, one.asked, scene) for one, scene in zip(asked, found, strict=True)]
    decibels = [_psnr(*row) for row in zip(images_B3hw, before_B3hw, map(untouched, asked), strict=True)]
    rows = {kind: [i for i, one in enumerate(asked) if one.edit.kind == kind] for kind in KINDS}
    rows = {kind: chosen for kind, chosen in rows.items() if chosen} | {ALL: list(range(len(asked)))}
    return {name: _scores([verdicts[i] for i in own], [decibels[i] for i in own]) for name, own in rows.items()}


def untouched(case: Case) -> Tensor:
    """Where two renderings are equal, and so is all within some pixels: bool (128, 128)."""
    changed = (case.source != case.target).any(0, keepdim=True).float()
    return F.max_pool2d(changed, 2 * MARGIN + 1, 1, MARGIN)[0] == 0


def _psnr(image_3hw: Tensor, before_3hw: Tensor, where_hw: Tensor) -> float | None:
    if where_hw.float().mean() < LEAST:
        return None
    error = (image_3hw.float() - before_3hw.float())[:, where_hw].square().mean() / 255**2
    return float(-10 * error.clamp(min=10 ** (-BEST / 10)).log10())


def _scores(verdicts: Sequence[EditVerdict], decibels: Sequence[float | None]) -> EditScores:
    total, known = len(verdicts), [one for one in decibels if one is not None]
    return EditScores(
        sum(one.followed for one in verdicts) / total,
        sum(one.kept for one in verdicts) / total,
        sum(all(one) for one in verdicts) / total,
        sum(known) / len(known) if known else None,
    )
