"""Merge adapters into the weights of a model, which becomes a whole model directory."""

from __future__ import annotations

import argparse

from var_toolkit.cli.new_directory import add_new_directory_option, require_new_directory
from var_toolkit.cli.options import add_adapter_option, add_model_option

SUMMARY = "merge adapters into a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen merge`."""
    add_model_option(parser)
    add_adapter_option(parser, required=True)
    add_new_directory_option(parser)


def run(args: argparse.Namespace) -> None:
    """Load, merge, and write the directory completely or not at all."""
    require_new_directory(args.out)
    from var_toolkit.loading import load

    load(args.model, adapters=args.adapter, device="cpu").save_pretrained(args.out)
    print(f"{args.out}: {args.model} with its adapters; draw with `vargen sample --model {args.out}`")
