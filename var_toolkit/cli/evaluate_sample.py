"""Draw many images of every class into a folder of PNG files or shards, to be scored.

The same command resumes a run that was stopped. Under torchrun the processes share the work; on the CPU each uses one
thread.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from var_toolkit.cli.options import (
    add_machine_options,
    add_model_option,
    add_sampling_options,
    at_least,
    model_of,
    sampling_settings,
)

SUMMARY = "draw many images of every class, to be scored"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen evaluate sample`."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the images")
    parser.add_argument("--classes", help="such as 0-9,207 (default: all classes of the model)")
    parser.add_argument("--per-class", type=at_least(1), default=50, help="images per class (default 50)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of image 0; image i has the seed SEED + i")
    add_model_option(parser)
    add_sampling_options(parser)
    add_machine_options(parser)
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        default=8,
        help="images drawn at a time (default 8); a run that is resumed must have the same",
    )
    parser.add_argument(
        "--shards", type=at_least(1), metavar="N", help="write N tar files (WebDataset) instead of one file per image"
    )
    parser.add_argument("--npz", type=Path, metavar="FILE.npz", help="also pack the images for the ADM evaluator")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> None:
    """Draw the missing images, then print a summary."""
    from var_toolkit.evaluation.sample_set import draw_set

    drawn = draw_set(
        model_of(args),
        args.out,
        tokenizer=args.tokenizer,
        classes=args.classes,
        per_class=args.per_class,
        seed=args.seed,
        settings=sampling_settings(args),
        batch_size=args.batch_size,
        device=args.device,
        dtype=args.dtype,
        npz=args.npz,
        shards=args.shards,
    )
    if not drawn.leads:
        return
    speed = drawn.added / drawn.seconds
    if args.json:
        facts = {
            "folder": str(drawn.folder),
            "images": drawn.images,
            "added": drawn.added,
            "seconds": round(drawn.seconds, 4),
            "images_per_second": round(speed, 4),
            "npz": str(drawn.npz) if drawn.npz else None,
        }
        print(json.dumps(facts))
        return
    now = f", {drawn.added:,} of them drawn now at {speed:.1f} images/s" if drawn.added else ""
    print(f"{drawn.folder}: {drawn.images:,} images{now}{f'; packed in {drawn.npz}' if drawn.npz else ''}")
