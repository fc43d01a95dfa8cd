"""Encode prompts to a file, from which `vargen sample --prompt-embeds` draws without the text encoder."""

from __future__ import annotations

import argparse
from pathlib import Path

from var_toolkit.cli.options import add_model_option
from var_toolkit.cli.subjects import add_encoder_options, place_encoder, require_encoder, require_kind
from var_toolkit.files import check_writable
from var_toolkit.registry import default_for_prompts

SUMMARY = "encode prompts to a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen embed`."""
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what the images are to show")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="the file to write")
    add_model_option(parser, default=None)
    add_encoder_options(parser)
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one, else the CPU), cpu, cuda, mps")


def run(args: argparse.Namespace) -> None:
    """Encode the prompts as a model reads them, and write the file."""
    if args.out.suffix != ".safetensors":
        raise ValueError(f"--out {args.out} must end in .safetensors")
    args.model = args.model or default_for_prompts()
    require_kind(args.model, texts=True)
    from torch import nn

    from var_toolkit.devices import find_device
    from var_toolkit.loading import load, skeleton

    device = find_device(args.device)
    check_writable(args.out.parent)
    pipe = skeleton(args.model)  # an encoder of transformers needs no other weights
    place_encoder(args, pipe)
    require_encoder(args, pipe, args.prompts)
    if isinstance(pipe.text_encoder, nn.Module):
        pipe = load(args.model, device=args.device)
    elif pipe.text_encoder is not None:
        pipe.text_encoder.to(device)
    embeds = pipe.encode_prompts(args.prompts)
    embeds.write(args.out)
    tokens = embeds.mask.sum(dim=1).tolist()
    for text, count in zip(args.prompts, tokens, strict=True):
        print(f"{args.out}: {text}, {count} tokens")
