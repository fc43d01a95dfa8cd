"""Make a control image of a photo, edges or depth, for `vargen sample --control`."""

from __future__ import annotations

import argparse
from pathlib import Path

from var_toolkit.cli.options import at_least, named
from var_toolkit.files import check_writable, write_whole

SUMMARY = "make a control image of a photo: edges, depth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen control`."""
    parser.add_argument("image", type=Path, metavar="PHOTO", help="an image file")
    parser.add_argument(
        "--kind", required=True, help="canny (edges by OpenCV), or depth (by the network of --estimator)"
    )
    parser.add_argument(
        "--estimator",
        metavar="NAME",
        help="with depth: a network for depth estimation of transformers, as a directory or a hub id user/name",
    )
    parser.add_argument(
        "--size",
        type=at_least(1),
        default=512,
        metavar="N",
        help="pixels of the shorter side, to which larger photos are reduced first (default 512)",
    )
    parser.add_argument("--out", type=Path, help="the .png file to write (default PHOTO_KIND.png in this folder)")


def run(args: argparse.Namespace) -> None:
    """Write the control image."""
    out = args.out or Path(f"{args.image.stem}_{args.kind}.png")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out} must end in .png")
    from var_toolkit.conditions.control_images import control_image, require_kind
    from var_toolkit.images import read_image

    require_kind(args.kind, args.size, args.estimator)
    check_writable(out.parent)
    photo = read_image(args.image)
    with named(args.image):
        found = control_image(photo, args.kind, size=args.size, estimator=args.estimator)
    write_whole(out, lambda path: found.save(path, format="png"))
    print(f"{out}: {args.kind} of {args.image}, {found.width} x {found.height} pixels")
