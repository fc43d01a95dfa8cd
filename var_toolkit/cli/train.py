"""Train a tokenizer, a backbone or a classifier as a recipe says; the same command continues a run that was stopped."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from var_toolkit.files import check_writable

SUMMARY = "train a network as a recipe says"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen train`."""
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="a recipe; see configs/")
    parser.add_argument("--out", type=Path, help="the folder of the run (default runs/CONFIG)")
    parser.add_argument("--cache", type=Path, help="where drawn images and tokens are kept between runs")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; torchrun's processes take a GPU each")


def run(args: argparse.Namespace) -> int:
    """Read the recipe, then train."""
    out = args.out or Path("runs") / args.config.stem
    from var_toolkit.training.recipe import read_recipe

    recipe = read_recipe(args.config)
    check_writable(out)
    from var_toolkit.training.loop import TrainingStoppedError, train

    try:
        final = train(recipe, out, cache_dir=args.cache or default_cache(), device=args.device)
    except TrainingStoppedError as stopped:
        print(stopped)
        return 130
    print(f"{final}: trained; its log is {out / 'log.jsonl'}")
    return 0


def default_cache() -> Path:
    """Where drawn images are kept: VARGEN_CACHE, else the user's cache folder."""
    base = os.environ.get("VARGEN_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "var_toolkit"
