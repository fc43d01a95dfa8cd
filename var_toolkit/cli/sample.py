"""Draw images of classes."""

from __future__ import annotations

import argparse

from var_toolkit.cli.drawing import Task, add_drawing_options, run_task

SUMMARY = "draw images of classes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen sample`."""
    parser.add_argument(
        "--class",
        dest="classes",
        nargs="+",
        required=True,
        metavar="CLASS",
        help="names, numbers, ranges such as 207-210, synsets (see `vargen classes`); none for no label",
    )
    add_drawing_options(parser)


def run(args: argparse.Namespace) -> None:
    """Draw every class with every seed."""
    run_task(args, Task(lambda pipe, labels, **drawing: pipe.stream(labels, **drawing)))
