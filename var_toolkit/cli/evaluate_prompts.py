"""Draw prompts that no model was trained with, and count how often an image shows what its prompt asks for.

The prompts are of scenes, in categories after GenEval. The table also scores real renderings of the same scenes,
and their reconstructions by the model's tokenizer: the best that a detector and a tokenizer allow. With --prompts a
model of text draws the lines of a file instead, which CLIPScore judges.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from var_toolkit.cli.options import (
    add_machine_options,
    add_model_option,
    add_sampling_options,
    at_least,
    model_of,
    sampling_settings,
)

if TYPE_CHECKING:
    from torch import Tensor

    from var_toolkit.evaluation.clip_score import ClipScore
    from var_toolkit.pipeline import Pipeline
    from var_toolkit.still_life.scene_quality import PromptReport, PromptScores

SUMMARY = "draw prompts of scenes; count how often images show what they ask for"
SCENES = 1000  # prompts of scenes
SHOWN = 40  # images of a sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen evaluate prompts`."""
    parser.add_argument("-n", type=at_least(1), help="number of prompts (default 1000, or the lines of --prompts)")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE.txt", help="draw the lines of this file instead of scenes"
    )
    parser.add_argument(
        "--clip-score",
        metavar="CLIP",
        help="also print the CLIPScore by this CLIP model (openai/clip-vit-large-patch14, or a directory)",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of image 0; image i has the seed SEED + i")
    add_model_option(parser)
    parser.set_defaults(model="scenes-infinity")
    add_sampling_options(parser)
    add_machine_options(parser)
    parser.add_argument("--batch-size", type=at_least(1), default=25, help="images drawn at a time (default 25)")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help=f"write the first {SHOWN} images as one")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> None:
    """Draw, judge and print."""
    asked = _asked(args)
    from var_toolkit.devices import find_device
    from var_toolkit.evaluation.clip_score import ClipScore
    from var_toolkit.loading import load

    clip = ClipScore(args.clip_score, find_device(args.device)) if args.clip_score else None
    pipe = load(model_of(args), tokenizer=args.tokenizer, device=args.device, dtype=args.dtype)
    found = _of_scenes(args, pipe, clip) if clip is None or asked is None else _of_file(args, pipe, clip, asked)
    print(json.dumps(found.facts) if args.json else "\n".join(found.lines))


class _Found(NamedTuple):
    facts: dict[str, Any]
    lines: list[str]


def _asked(args: argparse.Namespace) -> list[str] | None:
    """The lines of a file of prompts, where one is given. ValueError if it has none, or nothing is to judge them."""
    if args.prompts is None:
        return None
    if args.clip_score is None:
        raise ValueError("--prompts needs --clip-score: the detector knows only prompts of scenes")
    try:
        lines = [line.strip() for line in args.prompts.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(
            f"--prompts {args.prompts} cannot be read: {why}; give a text file with a prompt a line"
        ) from None
    if not lines:
        raise ValueError(f"--prompts {args.prompts} has no lines; write one prompt a line")
    return lines[: args.n]


def _of_scenes(args: argparse.Namespace, pipe: Pipeline, clip: ClipScore | None) -> _Found:
    from var_toolkit.still_life.scene_judge import prompts
    from var_toolkit.still_life.scene_quality import prompt_report, renderings

    count, settings = args.n or SCENES, sampling_settings(args)
    report = prompt_report(pipe, count, seed=args.seed, batch_size=args.batch_size, settings=settings)
    columns = {name: asdict(scores) for name, scores in report.columns.items()}
    facts: dict[str, Any] = {"prompts": count, **columns, "psnr": report.psnr, "edge_f1": report.edge_f1}
    lines = _lines(report)
    if clip is not None:
        asked = prompts(count)
        texts = [one.caption.text for one in asked]
        scores = {"model": clip(report.images, texts), "renderings": clip(renderings(asked), texts)}
        facts["clip_score"] = {name: float(score.mean()) for name, score in scores.items()}
        shown = ", ".join(f"{name} {value:.2f}" for name, value in facts["clip_score"].items())
        lines.append(f"CLIPScore by {clip.source}: {shown}")
    write_sheet(report.images, args.sheet)
    return _Found(facts, lines)


def _of_file(args: argparse.Namespace, pipe: Pipeline, clip: ClipScore, asked: list[str]) -> _Found:
    from var_toolkit.still_life.scene_quality import drawn_prompts

    seeds = range(args.seed, args.seed + len(asked))
    images = drawn_prompts(pipe, asked, seeds, args.batch_size, sampling_settings(args))
    score = clip(images, asked)
    write_sheet(images, args.sheet)
    told = f"CLIPScore of {len(asked)} prompts by {clip.source}: {score.mean():.2f}, worst {score.min():.2f}"
    return _Found({"prompts": len(asked), "clip_score": {"model": float(score.mean())}}, [told])


def _lines(report: PromptReport) -> list[str]:
    def row(name: str, values: list[float]) -> str:
        return f"{name:20}" + "".join(f"{100 * value:>16.1f}" for value in values)

    columns: list[PromptScores] = list(report.columns.values())
    return [
        f"{'% of images':20}" + "".join(f"{name:>16}" for name in report.columns),
        *(row(name, [one.categories[name] for one in columns]) for name in columns[0].categories),
        row("all", [one.whole for one in columns]),
        "",
        *(row(f"right {name}", [one.attributes[name] for one in columns]) for name in columns[0].attributes),
        "",
        f"tokenizer: {report.psnr:.2f} dB, edge F1 {report.edge_f1:.3f}",
    ]


def write_sheet(images_B3hw: Tensor, path: Path | None) -> None:
    """Write the first uint8 images (B, 3, h, w) side by side, where a file is given."""
    if path is None:
        return
    from torchvision.transforms.functional import to_pil_image

    from var_toolkit.files import write_whole
    from var_toolkit.sheets import grid

    sheet = grid([to_pil_image(image) for image in images_B3hw[:SHOWN]], columns=8)
    write_whole(path, lambda file: sheet.save(file, "PNG"))
