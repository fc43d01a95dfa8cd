"""Encode and decode an image with a model's tokenizer: the image and its reconstruction, side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from var_toolkit.cli.hints import tell_purpose
from var_toolkit.cli.options import add_machine_options, add_model_option
from var_toolkit.files import check_writable, write_whole
from var_toolkit.sheets import enlarged, grid

if TYPE_CHECKING:
    from var_toolkit.formats.fitting import AnyTokenizer

SUMMARY = "show an image as the tokenizer reconstructs it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen reconstruct`."""
    parser.add_argument(
        "image", type=Path, metavar="IMAGE", help="an image file; its middle square is cropped and resized"
    )
    add_model_option(parser)
    add_machine_options(parser)
    parser.add_argument(
        "--out", type=Path, help="the .png file to write (default IMAGE_reconstruction.png in this folder)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> None:
    """Encode and decode, write both images side by side, print the PSNR."""
    if args.dtype in ("int8", "float8"):
        raise ValueError(f"--dtype {args.dtype} is for drawing; a tokenizer alone is not quantised, use float32")
    out = args.out or Path(f"{args.image.stem}_reconstruction.png")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out} must end in .png")
    check_writable(out.parent)
    from var_toolkit.images import read_image

    image = read_image(args.image)
    import torch

    from var_toolkit.devices import find_device
    from var_toolkit.images import as_output, given_square
    from var_toolkit.loading import load_tokenizer
    from var_toolkit.precision import precision_of

    precision = precision_of(args.dtype, find_device(args.device))
    tokenizer = load_tokenizer(args.model, device=args.device, dtype=precision.wide)
    side = tokenizer.image_side
    before = given_square(image, side, least=side // tokenizer.scales.finest)
    after = tokenizer.reconstruct(before.unsqueeze(0).to(find_device(args.device)) * 2 - 1).cpu()
    error = ((after[0] + 1) / 2 - before).square().mean().item()
    psnr = -10 * torch.tensor(max(error, 1e-10)).log10().item()
    pair = grid([*as_output(before.unsqueeze(0) * 2 - 1, "pil"), *as_output(after, "pil")], columns=2)
    write_whole(out, lambda path: enlarged(pair, 512).save(path, format="png"))
    tokens, told = _token_count(tokenizer)
    if args.json:
        print(json.dumps({"file": str(out), "psnr": round(psnr, 2), "tokens": tokens, "model": str(args.model)}))
    else:
        print(f"{out}: the image (left), its reconstruction from {told} (right); PSNR {psnr:.1f} dB")
    tell_purpose(args.model, of_image=True)


def _token_count(tokenizer: AnyTokenizer) -> tuple[int, str]:
    """The number of tokens of an image, and a phrase for it. Of continuous tokens only the finest map counts."""
    from var_toolkit.tokenizers.kl import KLTokenizer

    if not isinstance(tokenizer, KLTokenizer):
        return tokenizer.scales.total, f"{tokenizer.scales.total} tokens"
    positions = tokenizer.scales.finest**2
    return positions, f"{positions} latent positions of {tokenizer.channels} channels"
