"""Turn published weight files into a model directory that `--model` and `var_toolkit.load` take.

Without --backbone only the tokenizer is converted, for `tokenizer:` in a training recipe.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from var_toolkit.cli.new_directory import add_new_directory_option, require_new_directory

SUMMARY = "turn published weight files into a model directory"
NETWORKS = ("tokenizer", "backbone")
KINDS = ".pth, .safetensors, an index of shards (.safetensors.index.json), or a folder of these"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen convert`."""
    from var_toolkit.registry import HOMES

    known = ", ".join(home.family for home in HOMES.values() if home.family)
    parser.add_argument(
        "--family", required=True, metavar="NAME", help=f"the kind of model: {known}, or a module of your own"
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="FILE", help=f"{KINDS}; or the directory of a tokenizer"
    )
    parser.add_argument(
        "--backbone", type=Path, metavar="FILE", help=f"{KINDS}; without it only the tokenizer is converted"
    )
    parser.add_argument(
        "--adapter", type=Path, metavar="FILE", help=f"{KINDS}; of a control adapter, beside the backbone (CAR)"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.json",
        help="arguments that the tensors do not determine, by their published names: "
        '{"tokenizer": {...}, "backbone": {...}}',
    )
    parser.add_argument(
        "--weights",
        metavar="ema|model",
        help="which weights of a training checkpoint: ema, the averaged ones (the default if it has both), or model, "
        "those that were trained",
    )
    add_new_directory_option(parser)
    parser.add_argument("--half", action="store_true", help="store the weights in float16: half the size")


def run(args: argparse.Namespace) -> None:
    """Read and check the files, then write the directory completely or not at all."""
    require_new_directory(args.out)
    config = _config(args.config)
    import torch

    dtype = torch.float16 if args.half else None
    networks = _networks(args, config)
    count = sum(p.numel() for network in networks.values() for p in network.parameters()) / 1e6
    if args.backbone is None:
        _write_tokenizer(args, networks["tokenizer"], dtype)
        kind = type(networks["tokenizer"]).__name__
        print(f"{args.out}: {kind}, {count:.1f} M parameters; train on it with `tokenizer: {args.out}` in a recipe")
        return
    pipe = _pipeline(args, networks)
    pipe.save_pretrained(args.out, dtype)
    show = "--class 0" if pipe.text is None else '--prompt "..."'
    print(
        f"{args.out}: {type(pipe.backbone).__name__} with {pipe.backbone.config.depth} layers, "
        f"{pipe.tokenizer.image_side} px, {count:.1f} M parameters; "
        f"draw with `vargen sample --model {args.out} {show}`"
    )


def _pipeline(args: argparse.Namespace, networks: dict[str, Any]) -> Any:
    from var_toolkit.conditions.text import reads
    from var_toolkit.formats.facts import of_files
    from var_toolkit.formats.fitting import fitted
    from var_toolkit.formats.published import published_sampling
    from var_toolkit.pipeline import Pipeline

    backbone = networks["backbone"]
    tokenizer = fitted(networks["tokenizer"], backbone, (str(args.tokenizer), str(args.backbone)))
    data_set = "imagenet" if reads(backbone) == 1000 else None
    facts = of_files(args.family, {part: getattr(args, part).name for part in NETWORKS})
    sampling = published_sampling(args.family, backbone.config, args.backbone.name)
    return Pipeline(tokenizer, backbone, sampling, data_set, facts=facts, text_encoder=_text_encoder(args, backbone))


def _text_encoder(args: argparse.Namespace, backbone: Any) -> Any:
    """The text encoder that the published models of a family have; None for a model of classes."""
    from var_toolkit.conditions.text import text_of
    from var_toolkit.conditions.text_encoders import TransformersEncoder
    from var_toolkit.registry import family, published

    text, named = text_of(backbone), (source.text_encoder for _, source in published(args.family))
    told = next(filter(None, named), family(args.family).text_encoder)
    return None if text is None or told is None else TransformersEncoder(told, text.longest)


def _write_tokenizer(args: argparse.Namespace, network: Any, dtype: Any) -> None:
    from var_toolkit.files import written_whole
    from var_toolkit.formats.directory import write_network
    from var_toolkit.formats.facts import of_files, write_facts

    with written_whole(args.out) as folder:
        write_network(network, folder, dtype)
        write_facts(folder, of_files(args.family, {"tokenizer": args.tokenizer.name}))


def _networks(args: argparse.Namespace, config: dict[str, Any]) -> dict[str, Any]:
    """The networks of the given files; the tokenizer may also be a directory."""
    from var_toolkit.formats.lone_tokenizers import Place, read_tokenizer
    from var_toolkit.formats.published import ADAPTER, networks_from_tensors, required
    from var_toolkit.formats.weight_files import read_checkpoints
    from var_toolkit.registry import CONFIG

    if args.adapter is not None and args.backbone is None:
        raise ValueError(f"--adapter {args.adapter} belongs to a backbone; give --backbone as well")
    files = {part: getattr(args, part) for part in (*NETWORKS, ADAPTER) if getattr(args, part) is not None}
    if unused := [part for part in config if part not in files]:
        raise ValueError(f"{args.config} has settings of the {unused[0]}; give --{unused[0]} as well")
    found: dict[str, Any] = {}
    if (args.tokenizer / CONFIG).is_file():
        if "tokenizer" in config:
            raise ValueError(
                f"{args.config} has settings of the tokenizer, but {args.tokenizer} has its own; remove one"
            )
        found["tokenizer"] = read_tokenizer(Place(files.pop("tokenizer")))
    chosen = read_checkpoints({part: (file, required(args.family, part)) for part, file in files.items()}, args.weights)
    tensors = {part: one.tensors for part, one in chosen.items()}
    found |= networks_from_tensors(args.family, tensors, config, {part: str(file) for part, file in files.items()})
    for part, one in chosen.items():
        if one.note is not None:
            print(f"{files[part]}: {one.note}", file=sys.stderr)
    return found


def _config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    from var_toolkit.formats.json_files import read_json

    content = read_json(path)
    unknown = [name for name in content if name not in NETWORKS]
    if unknown:
        raise ValueError(f"{path} has the unknown key {unknown[0]!r}; allowed are {', '.join(NETWORKS)}")
    for name, part in content.items():
        if not isinstance(part, dict):
            raise ValueError(f'{path}: {name} is not an object; expected {{"tokenizer": {{...}}, "backbone": {{...}}}}')
    return content
