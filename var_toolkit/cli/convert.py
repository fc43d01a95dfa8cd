"""Turn published weight files into a model directory that `--model` and `var_toolkit.load` take."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from var_toolkit.files import check_writable

SUMMARY = "turn published weight files into a model directory"
FAMILIES = ("var", "hmar", "flowar", "llamagen")
NETWORKS = ("tokenizer", "backbone")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen convert`."""
    parser.add_argument("--family", choices=FAMILIES, required=True, help="whose files they are")
    for part, more in zip(NETWORKS, (", .ckpt, or the directory of an AutoencoderKL", ""), strict=True):
        parser.add_argument(f"--{part}", type=Path, required=True, metavar="FILE", help=f".pth or .safetensors{more}")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.json",
        help='what the tensors cannot tell: {"tokenizer": {...}, "backbone": {...}} with the published argument names',
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the directory to write; must be new")
    parser.add_argument("--half", action="store_true", help="store the weights in float16: half the size")


def run(args: argparse.Namespace) -> None:
    """Read, check, write whole or not at all."""
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"--out {args.out} exists already; choose a new directory")
    check_writable(args.out.parent)
    config = _config(args.config)
    import torch

    from var_toolkit.pipeline import Pipeline
    from var_toolkit.zoo.facts import of_files
    from var_toolkit.zoo.fitting import fitted
    from var_toolkit.zoo.published import FAMILIES as READERS

    networks = _networks(args, config)
    backbone = networks["backbone"]
    tokenizer = fitted(networks["tokenizer"], backbone, (str(args.tokenizer), str(args.backbone)))
    data_set = "imagenet" if backbone.config.num_classes == 1000 else None
    sampling = READERS[args.family].sampling(backbone.config)
    facts = of_files(args.family, {part: getattr(args, part).name for part in NETWORKS})
    pipe = Pipeline(tokenizer, backbone, sampling, data_set, facts=facts)
    pipe.save_pretrained(args.out, torch.float16 if args.half else None)
    count = sum(p.numel() for network in networks.values() for p in network.parameters())
    print(
        f"{args.out}: {type(backbone).__name__} with {backbone.config.depth} layers, {tokenizer.image_side} px, "
        f"{count / 1e6:.1f} M parameters; draw with `vargen sample --model {args.out} --class 0`"
    )


def _networks(args: argparse.Namespace, config: dict[str, Any]) -> dict[str, Any]:
    """Tokenizer and backbone, of which the tokenizer may lie in a directory already."""
    from var_toolkit.zoo.lone_tokenizers import read_autoencoder
    from var_toolkit.zoo.published import networks_from_tensors
    from var_toolkit.zoo.weight_files import read_weights

    files = {part: getattr(args, part) for part in NETWORKS}
    found: dict[str, Any] = {}
    if args.tokenizer.is_dir():
        if "tokenizer" in config:
            raise ValueError(f"{args.config} has settings of the tokenizer, but {args.tokenizer} has its own")
        found["tokenizer"] = read_autoencoder(files.pop("tokenizer"))
    tensors = {part: read_weights(file, part) for part, file in files.items()}
    return {**networks_from_tensors(args.family, tensors, config, {p: str(f) for p, f in files.items()}), **found}


def _config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(part, dict) for part in content.values()):
        raise ValueError(f'{path} must be an object of objects: {{"tokenizer": {{...}}, "backbone": {{...}}}}')
    unknown = [name for name in content if name not in NETWORKS]
    if unknown:
        raise ValueError(f"{path} has the unknown part {unknown[0]!r}; known are {', '.join(NETWORKS)}")
    return content
