"""Draw images of classes, or of what a prompt says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from var_toolkit.cli.drawing import Task, add_drawing_options, run_task
from var_toolkit.cli.subjects import add_subject_options

if TYPE_CHECKING:
    from var_toolkit.core.plan import Plan
    from var_toolkit.pipeline import Pipeline

SUMMARY = "draw images of classes or prompts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen sample`."""
    parser.usage = "%(prog)s (--class CLASS ... | --prompt TEXT) [-n N] [--seed SEED] [--model MODEL] [options]"
    add_subject_options(parser, required=True)
    parser.add_argument(
        "--control",
        type=Path,
        metavar="FILE",
        help="models with a control adapter: an image of edges, depth or such, cropped to the size",
    )
    add_drawing_options(parser)


def run(args: argparse.Namespace) -> None:
    """Draw every class or prompt with every seed."""
    more: dict[str, Any] = {}
    if args.control is not None:
        from var_toolkit.images import read_image

        more["control_image"] = read_image(args.control)

    def check(shape: Pipeline, plan: Plan) -> dict[str, Any]:
        from var_toolkit.image_conditions import require_image

        require_image(shape.backbone, plan, source=False, control=args.control is not None)
        return {} if args.control is None else {"control": str(args.control)}

    def draw(pipe: Pipeline, labels: list[int] | None, **drawing: Any) -> Any:
        return pipe.stream(labels, **more, **drawing)

    run_task(args, Task(draw, check))
