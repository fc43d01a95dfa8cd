"""Redraw a part of an image: inpaint with --mask, outpaint with --expand, change the class with --class.

Models that edit by instructions change the whole image as --instruction says.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from var_toolkit.cli.drawing import Task, add_drawing_options, run_task
from var_toolkit.cli.options import named, numbers
from var_toolkit.cli.subjects import add_subject_options, require_editor
from var_toolkit.registry import prompt_models

if TYPE_CHECKING:
    from var_toolkit.core.plan import Plan
    from var_toolkit.pipeline import Pipeline

SUMMARY = "redraw a part of an image: inpaint, outpaint, change the class"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen edit`."""
    parser.usage = "%(prog)s IMAGE (--mask FILE|X,Y,W,H | --expand N|L,T,R,B | --instruction TEXT) [options]"
    parser.add_argument(
        "image",
        type=Path,
        metavar="IMAGE",
        help="an image file, before the options; the largest square that contains the mask is edited",
    )
    add_subject_options(parser, required=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--mask", metavar="FILE|X,Y,W,H", help="an image whose light pixels mark what is redrawn, or a box in pixels"
    )
    what.add_argument(
        "--expand",
        type=numbers(1, 4),
        metavar="N|L,T,R,B",
        help="pixels to add and draw: one number for all sides, or left, top, right, bottom",
    )
    what.add_argument(
        "--instruction",
        dest="instructions",
        action="append",
        metavar="TEXT",
        help="models that edit by instructions: what is changed; several times for several instructions",
    )
    parser.add_argument(
        "--keep-pixels",
        action="store_true",
        help="paste the redrawn part into the original image, so that every pixel outside the mask is preserved",
    )
    add_drawing_options(parser)


def run(args: argparse.Namespace) -> None:
    """Draw every class with every seed into the image, or every instruction."""
    if args.instructions is not None:
        _run_instructions(args)
        return
    from var_toolkit.editing import prepare, require_places
    from var_toolkit.image_conditions import require_image
    from var_toolkit.images import read_image

    image = read_image(args.image)
    mask = None if args.mask is None else _mask(args.mask)
    expand = args.expand and (args.expand[0] if len(args.expand) == 1 else args.expand)

    def check(shape: Pipeline, plan: Plan) -> dict[str, Any]:
        require_image(shape.backbone, plan, source=False, control=False)
        require_places(shape.tokenizer)
        with named(args.image):
            side = plan.schedule.finest * shape.tokenizer.downsample
            edit = prepare(image, mask, expand, side=side, whole=args.keep_pixels)
        return {"image": str(args.image), "square": list(edit.square), "keep_pixels": args.keep_pixels}

    def draw(pipe: Pipeline, labels: list[int], **drawing: Any) -> Any:
        return pipe.stream_edit(image, mask, labels, expand=expand, keep_pixels=args.keep_pixels, **drawing)

    run_task(args, Task(draw, check, f"{args.image.stem}_edit_"))


def _run_instructions(args: argparse.Namespace) -> None:
    """Edit the image by every instruction with every seed."""
    odd = {"--class": args.classes, "--prompt": args.prompts, "--prompt-embeds": args.prompt_embeds}
    if given := [
        name for name, value in (*odd.items(), ("--keep-pixels", args.keep_pixels or None)) if value is not None
    ]:
        raise ValueError(f"--instruction says all that is changed; remove {given[0]}")
    editors = ", ".join(prompt_models(edits=True))
    if args.model is None:
        raise ValueError(f"--instruction needs a model that edits by instructions; give --model: {editors}")
    require_editor(args.model, edits=True)
    args.prompts = args.instructions

    from var_toolkit.editing import on_canvas
    from var_toolkit.image_conditions import require_image
    from var_toolkit.images import read_image

    image = read_image(args.image)

    def check(shape: Pipeline, plan: Plan) -> dict[str, Any]:
        require_image(shape.backbone, plan, source=True, control=False)
        with named(args.image):
            on_canvas(image, plan.schedule.finest * shape.tokenizer.downsample)
        return {"image": str(args.image)}

    def draw(pipe: Pipeline, labels: None, *, prompt: list[str], **drawing: Any) -> Any:
        return pipe.stream_edit(image, instruction=prompt, **drawing)

    run_task(args, Task(draw, check, f"{args.image.stem}_edit_"))


def _mask(text: str) -> Any:
    """A box of four numbers, or the image of that name."""
    from var_toolkit.images import open_image

    if Path(text).exists():
        return open_image(Path(text))
    try:
        return numbers(4)(text)
    except argparse.ArgumentTypeError:
        raise ValueError(f"--mask {text!r} is neither a file nor a box x,y,w,h of four whole numbers") from None
