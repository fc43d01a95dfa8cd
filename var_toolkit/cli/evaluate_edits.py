"""Edit rendered scenes by instructions, and count how often the result shows what was asked for and all else as it was.

The scenes and instructions are none of the training. The table also scores renderings of the scenes that are asked
for, and their reconstructions by the model's tokenizer: the best that a detector and a tokenizer allow.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from var_toolkit.cli.evaluate_prompts import SHOWN, write_sheet
from var_toolkit.cli.options import (
    add_machine_options,
    add_model_option,
    add_sampling_options,
    at_least,
    model_of,
    sampling_settings,
)
from var_toolkit.cli.subjects import require_editor
from var_toolkit.registry import prompt_models

if TYPE_CHECKING:
    from var_toolkit.still_life.scene_edit_quality import EditReport, EditScores

SUMMARY = "edit scenes by instructions; count how often they are followed and the rest is unchanged"
EDITS = 700  # a hundred of each kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen evaluate edits`."""
    parser.add_argument("-n", type=at_least(1), default=EDITS, help=f"number of edits (default {EDITS})")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of image 0; image i has the seed SEED + i")
    add_model_option(parser)
    add_sampling_options(parser)
    add_machine_options(parser)
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE.png", help=f"write the first {SHOWN // 2} sources and results as one"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> None:
    """Edit, judge and print."""
    if args.model is None:
        raise ValueError(f"give --model, a model that edits by instructions: {', '.join(prompt_models(edits=True))}")
    require_editor(args.model, edits=True)
    import torch

    from var_toolkit.loading import load
    from var_toolkit.still_life.scene_edit_quality import edit_report

    pipe = load(model_of(args), tokenizer=args.tokenizer, device=args.device, dtype=args.dtype)
    report = edit_report(pipe, args.n, seed=args.seed, settings=sampling_settings(args))
    columns = {name: {kind: asdict(one) for kind, one in rows.items()} for name, rows in report.columns.items()}
    print(json.dumps({"edits": args.n, **columns}) if args.json else "\n".join(_lines(report)))
    write_sheet(torch.stack((report.sources, report.images), dim=1).flatten(0, 1), args.sheet)


def _lines(report: EditReport) -> list[str]:
    made, real, again = report.columns.values()
    heads = ("followed", "unchanged", "both", "rest, dB", "renderings", "reconstr.", "rest, dB")
    return [
        f"{'% of images':14}" + "".join(f"{head:>12}" for head in heads),
        *(_row(kind, made[kind], real[kind], again[kind]) for kind in made),
    ]


def _row(kind: str, made: EditScores, real: EditScores, again: EditScores) -> str:
    cells = (
        *(f"{100 * share:.1f}" for share in (made.followed, made.kept, made.both)),
        _decibels(made),
        *(f"{100 * one.both:.1f}" for one in (real, again)),
        _decibels(again),
    )
    return f"{kind:14}" + "".join(f"{cell:>12}" for cell in cells)


def _decibels(scores: EditScores) -> str:
    return "-" if scores.psnr is None else f"{scores.psnr:.2f}"
