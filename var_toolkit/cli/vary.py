"""Draw variations of an image: its coarse scales are preserved, and the finer ones are redrawn."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from var_toolkit.cli.drawing import Task, add_drawing_options, run_task
from var_toolkit.cli.options import at_least, named
from var_toolkit.cli.subjects import add_subject_options

if TYPE_CHECKING:
    from var_toolkit.core.plan import Plan
    from var_toolkit.pipeline import Pipeline

SUMMARY = "draw variations of an image by redrawing its finer scales"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen vary`."""
    parser.usage = "%(prog)s IMAGE --from-scale K [options]"
    parser.add_argument(
        "image",
        type=Path,
        metavar="IMAGE",
        help="an image file, before the options; its middle square is cropped and resized",
    )
    add_subject_options(parser, required=False)
    parser.add_argument(
        "--from-scale",
        type=at_least(0),
        required=True,
        metavar="K",
        help="the first scale that is redrawn, counted from 0; 0 redraws all",
    )
    add_drawing_options(parser)


def run(args: argparse.Namespace) -> None:
    """Draw variations of the image for every class and seed."""
    from var_toolkit.core.preserved import require_scale
    from var_toolkit.editing import as_image
    from var_toolkit.image_conditions import require_image
    from var_toolkit.images import read_image

    image = read_image(args.image)

    def check(shape: Pipeline, plan: Plan) -> dict[str, Any]:
        require_image(shape.backbone, plan, source=False, control=False)
        require_scale(args.from_scale, plan.schedule)
        with named(args.image):
            as_image(image, plan.schedule.finest * shape.tokenizer.downsample)
        return {"image": str(args.image), "from_scale": args.from_scale}

    def draw(pipe: Pipeline, labels: list[int], **drawing: Any) -> Any:
        return pipe.stream_vary(image, args.from_scale, labels, **drawing)

    run_task(args, Task(draw, check, f"{args.image.stem}_vary_"))
