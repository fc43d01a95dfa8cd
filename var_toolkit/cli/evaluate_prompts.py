"""Draw prompts that no model was trained with, and count how often an image shows what its prompt asks for.

The prompts are of scenes, in categories after GenEval. The table also scores real renderings of the same scenes,
and their reconstructions by the model's tokenizer: the best that a detector and a tokenizer allow.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from var_toolkit.cli.options import (
    add_machine_options,
    add_model_option,
    add_sampling_options,
    at_least,
    model_of,
    sampling_settings,
)

if TYPE_CHECKING:
    from var_toolkit.still_life.scene_quality import PromptReport, PromptScores

SUMMARY = "draw prompts of scenes; count how often images show what they ask for"
SHOWN = 40  # images of a sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen evaluate prompts`."""
    parser.add_argument("-n", type=at_least(1), default=1000, help="number of prompts (default 1000)")
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
    import torch

    from var_toolkit.loading import load
    from var_toolkit.still_life.scene_quality import prompt_report

    pipe = load(model_of(args), tokenizer=args.tokenizer, device=args.device, dtype=getattr(torch, args.dtype))
    report = prompt_report(pipe, args.n, seed=args.seed, batch_size=args.batch_size, settings=sampling_settings(args))
    if args.sheet is not None:
        _write_sheet(report, args.sheet)
    if args.json:
        columns = {name: asdict(scores) for name, scores in report.columns.items()}
        print(json.dumps({"prompts": args.n, **columns, "psnr": report.psnr, "edge_f1": report.edge_f1}))
        return
    for line in _lines(report):
        print(line)


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


def _write_sheet(report: PromptReport, path: Path) -> None:
    from torchvision.transforms.functional import to_pil_image

    from var_toolkit.files import write_whole
    from var_toolkit.sheets import grid

    sheet = grid([to_pil_image(image) for image in report.images[:SHOWN]], columns=8)
    write_whole(path, lambda file: sheet.save(file, "PNG"))
