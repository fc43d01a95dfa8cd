"""Draw a large set of images (`sample`), score a set (`score`), or judge images of prompts or edits."""

from __future__ import annotations

import argparse
from importlib import import_module

SUMMARY = "draw many images; compute FID, Inception Score, KID, precision and recall"
STEPS = ("sample", "score", "prompts", "edits")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The steps, each with its own options."""
    steps = parser.add_subparsers(dest="step", metavar="STEP")
    for name in STEPS:
        module = import_module(f"var_toolkit.cli.evaluate_{name}")
        step = steps.add_parser(name, help=module.SUMMARY, description=module.__doc__)
        module.add_arguments(step)
        step.set_defaults(run_step=module.run)


def run(args: argparse.Namespace) -> int | None:
    """Run one step."""
    if args.step is None:
        args.leaf.error(f"give a step: {', '.join(STEPS[:-1])} or {STEPS[-1]}")
    status: int | None = args.run_step(args)
    return status
