"""Train a tokenizer, a backbone or a classifier from a recipe; the same command resumes a run that was stopped."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from var_toolkit.cli.options import at_least
from var_toolkit.config_files import configs, find_config

if TYPE_CHECKING:
    from var_toolkit.training.recipe import Recipe

SUMMARY = "train a network from a recipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen train`."""
    parser.epilog = f"recipes: {', '.join(configs())}"
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe in configs/, such as stilllife-var"
    )
    parser.add_argument("--out", type=Path, help="the folder of the run (default runs/NAME)")
    parser.add_argument("--cache", type=Path, help="where rendered images and tokens are stored between runs")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu or cuda; under torchrun each process uses its own GPU"
    )
    parser.add_argument(
        "--skip-damaged",
        action="store_true",
        help="replace images that cannot be read by others (of the same class), leave out those without a caption, "
        "and report how many there were",
    )
    parser.add_argument(
        "--track",
        choices=("tensorboard", "wandb", "trackio"),
        help="also show log and images in TensorBoard (in the folder of the run), Weights & Biases or trackio",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the memory of a process and the cards that hold it, train nothing"
    )
    parser.add_argument(
        "--processes", type=at_least(1), help="of which --dry-run tells the memory (default: as torchrun says, or 1)"
    )


def run(args: argparse.Namespace) -> int:
    """Find and read the recipe, then train."""
    if args.processes is not None and not args.dry_run:
        raise ValueError("--processes is for --dry-run; to train in several processes start them by torchrun")
    processes = args.processes or (_processes() if args.dry_run else 1)
    path = find_config(args.recipe, "recipe")
    out = args.out or Path("runs") / path.stem
    from var_toolkit.training.recipe import read_recipe

    recipe = read_recipe(path)
    if args.dry_run:
        print(_memory(recipe, processes))
        return 0
    from var_toolkit.training.loop import TrainingStoppedError, train
    from var_toolkit.user_folders import default_cache

    try:
        final = train(
            recipe,
            out,
            cache_dir=args.cache or default_cache(),
            device=args.device,
            skip_damaged=args.skip_damaged,
            track=args.track,
        )
    except TrainingStoppedError as stopped:
        print(stopped)
        return 130
    print(f"{final}: trained; its log is {out / 'log.jsonl'}")
    return 0


def _processes() -> int:
    """How many processes torchrun started; ValueError for what it would not set."""
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"WORLD_SIZE is {given!r}; it must be an integer of at least 1; unset it, or give --processes")
    return int(given)


def _memory(recipe: Recipe, processes: int) -> str:
    """ValueError if the batch cannot be split over the processes."""
    from var_toolkit.training.loop import require_split
    from var_toolkit.training.memory import told

    require_split(recipe, processes)
    return told(recipe, processes)
