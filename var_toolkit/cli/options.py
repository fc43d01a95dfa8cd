"""Options that several commands share, and the checks of their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable

DTYPES = ("float32", "bfloat16", "float16")


def at_least(low: int) -> Callable[[str], int]:
    """The type of an option that takes an integer of at least `low`."""

    def parse(text: str) -> int:
        if not text.lstrip("+-").isdigit() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least {low}")
        return int(text)

    return parse


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """--device and --dtype."""
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1, mps"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="what the networks compute in")


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """--model."""
    from var_toolkit.zoo.registry import DEFAULT

    parser.add_argument(
        "--model", default=DEFAULT, help="a name from `vargen models`, a model directory, or a hub id user/name"
    )
