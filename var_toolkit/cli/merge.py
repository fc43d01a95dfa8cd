"""Merge adapters into the weights of a model, which becomes a whole model directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from var_toolkit.cli.options import add_adapter_option, add_model_option
from var_toolkit.files import check_new, check_writable

SUMMARY = "merge adapters into a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen merge`."""
    add_model_option(parser)
    add_adapter_option(parser, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the directory to write; it must not exist"
    )


def run(args: argparse.Namespace) -> None:
    """Load, merge, and write the directory completely or not at all."""
    try:
        check_new(args.out)
    except ValueError as error:
        raise ValueError(f"--out {error}") from None
    check_writable(args.out.parent)
    from var_toolkit.loading import load

    load(args.model, adapters=args.adapter, device="cpu").save_pretrained(args.out)
    print(f"{args.out}: {args.model} with its adapters; draw with `vargen sample --model {args.out}`")
