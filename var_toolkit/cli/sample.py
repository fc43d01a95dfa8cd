"""Draw images of classes, or of what a prompt says."""

from __future__ import annotations

import argparse

from var_toolkit.cli.drawing import Task, add_drawing_options, run_task
from var_toolkit.cli.subjects import add_subject_options

SUMMARY = "draw images of classes or prompts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen sample`."""
    add_subject_options(parser, required=True)
    add_drawing_options(parser)


def run(args: argparse.Namespace) -> None:
    """Draw every class or prompt with every seed."""
    run_task(args, Task(lambda pipe, labels, **drawing: pipe.stream(labels, **drawing)))
