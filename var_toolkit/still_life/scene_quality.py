"""Quality of drawn scenes, by the embedded detector: how often images show what prompts ask for; and of tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.formats.directory import load_network
from var_toolkit.pipeline import Pipeline
from var_toolkit.progress import Progress
from var_toolkit.registry import embedded_part
from var_toolkit.still_life.caption_reader import read_caption
from var_toolkit.still_life.scene_data import numbered
from var_toolkit.still_life.scene_detector import SceneDetector
from var_toolkit.still_life.scene_judge import CATEGORIES, HELD_OUT, Prompt, Verdict, judge, prompts

BATCH = 50
JUDGE = "scenes-detector"
ATTRIBUTES = tuple(field.name for field in fields(Verdict))
EDGE = 0.06  # least slope of brightness, of the whole range for each pixel, that counts as an edge


@dataclass(frozen=True)
class PromptScores:
    """Shares of images from 0 to 1: in which all is right, by category and over all; and by attribute."""

    whole: float
    categories: dict[str, float]
    attributes: dict[str, float]


@dataclass(frozen=True)
class PromptReport:
    """What a model draws of prompts, beside real renderings and their reconstructions."""

    images: Tensor  # uint8 (B, 3, 128, 128), of the model
    columns: dict[str, PromptScores]  # "model", "renderings", "reconstructions"
    psnr: float  # of reconstructions, mean over images, in dB
    edge_f1: float


def prompt_report(
    pipe: Pipeline, count: int, *, seed: int = 0, batch_size: int = 25, settings: Mapping[str, Any] | None = None
) -> PromptReport:
    """Scores of a model of text over `count` prompts; image i has the seed `seed` + i.

    ValueError if the model draws no prompts, or images of another size than scenes have.
    """
    asked = prompts(count)
    seeds = range(seed, seed + count)
    made = drawn_prompts(pipe, [one.caption.text for one in asked], seeds, batch_size, settings)
    real = renderings(asked)
    again = torch.cat([reconstructed(pipe, part) for part in real.split(BATCH)])
    columns = {"model": made, "renderings": real, "reconstructions": again}
    error = (again.float() - real.float()).square().mean((1, 2, 3)) / 255**2
    return PromptReport(
        columns["model"],
        {name: prompt_scores(images, asked) for name, images in columns.items()},
        float(-10 * error.log10().mean()),
        edge_f1(again, real),
    )


def drawn_prompts(
    pipe: Pipeline,
    asked: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
    settings: Mapping[str, Any] | None = None,
) -> Tensor:
    """What a model draws of some prompts, uint8 (B, 3, h, w). ValueError if the model draws no prompts."""
    if pipe.text is None:
        raise ValueError("this model draws classes; evaluate prompts needs a model of text, such as scenes-infinity")
    stream = pipe.stream(prompt=list(asked), seeds=seeds, batch_size=batch_size, output_type="pt", **(settings or {}))
    made = []
    with Progress(len(asked), "images", what="drawing prompts") as bar:
        for batch in stream:
            made.append((batch.images * 255).round().to(torch.uint8))
            bar.update(len(made[-1]))
    return torch.cat(made)


@torch.inference_mode()
def reconstructed(pipe: Pipeline, images_B3hw: Tensor) -> Tensor:
    """uint8 images as the tokenizer of a model returns them."""
    given = (images_B3hw / 127.5 - 1).to(pipe.device, next(pipe.tokenizer.parameters()).dtype)
    found: Tensor = pipe.tokenizer.reconstruct(given).float().cpu()
    return ((found.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@cache
def embedded_detector() -> SceneDetector:
    """The embedded detector."""
    judge = load_network(embedded_part(JUDGE))
    assert isinstance(judge, SceneDetector)
    return judge.requires_grad_(False)


@torch.inference_mode()
def prompt_scores(images_B3hw: Tensor, asked: Sequence[Prompt], detector: SceneDetector | None = None) -> PromptScores:
    """Scores of uint8 images (B, 3, 128, 128) that were drawn for prompts. ValueError if the two differ in number."""
    if not len(images_B3hw) == len(asked) > 0:
        raise ValueError(f"there are {len(images_B3hw)} images and {len(asked)} prompts; give one prompt per image")
    detector = detector or embedded_detector()
    found = [scene for part in images_B3hw.split(BATCH) for scene in detector.find(part / 127.5 - 1)]
    verdicts = [judge(prompt.caption, scene) for prompt, scene in zip(asked, found, strict=True)]
    of_category = {
        name: [one.whole for one, prompt in zip(verdicts, asked, strict=True) if prompt.category == name]
        for name in CATEGORIES
    }
    return PromptScores(
        _mean([one.whole for one in verdicts]),
        {name: _mean(right) for name, right in of_category.items() if right},
        {name: _mean([getattr(one, name) for one in verdicts]) for name in ATTRIBUTES},
    )


@torch.inference_mode()
def prompt_share(images_B3hw: Tensor, asked: Sequence[str]) -> list[float]:
    """The share of attributes that are right in uint8 images (B, 3, 128, 128) by the detector; 1 is all.

    ValueError in one line for a prompt that is not of the grammar of captions.
    """
    wanted = [read_caption(text) for text in asked]
    found = [scene for part in images_B3hw.split(BATCH) for scene in embedded_detector().find(part / 127.5 - 1)]
    verdicts = [judge(caption, scene) for caption, scene in zip(wanted, found, strict=True)]
    return [_mean([getattr(one, name) for name in ATTRIBUTES]) for one in verdicts]


def renderings(asked: Sequence[Prompt]) -> Tensor:
    """Real images of the scenes of prompts, uint8 (B, 3, 128, 128)."""
    splits = ("held-out" if prompt.category == HELD_OUT else "validation" for prompt in asked)
    images = [numbered(prompt.number, split) for prompt, split in zip(asked, splits, strict=True)]
    return torch.stack([torch.from_numpy(image) for image in images])


def edge_f1(made_B3hw: Tensor, real_B3hw: Tensor) -> float:
    """How well the edges of uint8 images agree with those of real ones: the harmonic mean of precision and recall.

    An edge is a pixel at which brightness changes by more than `EDGE` per pixel (Sobel) and most across its line; it
    agrees with another at most one pixel away.
    """
    made, real = edges(made_B3hw), edges(real_B3hw)
    precision = (made & _wider(real)).sum() / made.sum().clamp(min=1)
    recall = (real & _wider(made)).sum() / real.sum().clamp(min=1)
    return float(2 * precision * recall / (precision + recall).clamp(min=1e-9))


def edges(images_B3hw: Tensor) -> Tensor:
    """Where edges are, bool (B, h, w), of uint8 images."""
    grey = F.pad(images_B3hw.float().mean(1, keepdim=True) / 255, (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    x, y = F.conv2d(grey, torch.stack((across, across.T)).unsqueeze(1)).unbind(1)
    slope = (x * x + y * y).sqrt()
    left, right, above, below = (
        F.pad(slope, p)[:, :, :] for p in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    )
    sideways = (slope >= left[:, :, :-1]) & (slope >= right[:, :, 1:])
    upright = (slope >= above[:, :-1]) & (slope >= below[:, 1:])
    return (slope > EDGE) & torch.where(x.abs() > y.abs(), sideways, upright)


def _wider(edges_Bhw: Tensor) -> Tensor:
    return F.max_pool2d(edges_Bhw.float().unsqueeze(1), 3, stride=1, padding=1).squeeze(1) > 0


def _mean(right: Sequence[bool]) -> float:
    return sum(right) / len(right)
