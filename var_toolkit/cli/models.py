"""List all models that can be given by name, and where their weights are."""

from __future__ import annotations

import argparse
import json
import struct
from math import prod
from pathlib import Path
from typing import Any

from var_toolkit.registry import SCALE, WEIGHTS, Embedded, Entry, entry, list_models

SUMMARY = "list the models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vargen models`."""
    parser.add_argument("pattern", nargs="?", default="*", help='names to list, such as "var*"')
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    rows = [_row(entry(name)) for name in list_models(args.pattern)]
    if not rows:
        raise ValueError(f"no model matches {args.pattern!r}; `vargen models` lists all")
    if args.json:
        print(json.dumps({"models": rows}))
        return
    wide = max(len(row["name"]) for row in rows)
    print(f"{'name':{wide}} {'pixels':>6} {'parameters':>10}  {'weights':14} {'FID*':>5}  {'draws':7}  what it is")
    for row in rows:
        fid = f"{row['published_fid']:.2f}" if row["published_fid"] else ""
        print(
            f"{row['name']:{wide}} {row['resolution']:>6} {_short(row['parameters']):>10}  "
            f"{row['weights']:14} {fid:>5}  {row['draws'] or '':7}  {row['summary']}"
        )
    print("* as its authors report it on ImageNet, 50,000 images")


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "resolution": entry.resolution,
        "parameters": _parameters(entry),
        "weights": _whereabouts(entry),
        "published_fid": entry.published.get("fid"),
        "draws": ("prompts" if entry.takes_prompts else "classes") if entry.draws else None,
        "summary": entry.summary,
    }


def _parameters(entry: Entry) -> int | None:
    """Number of parameters of the backbones; of a tokenizer or a classifier where the entry is one."""
    if isinstance(entry.source, Embedded):
        parts = entry.source.parts()
        drawing = [folder for part, folder in parts.items() if part in ("backbone", "refiner")]
        return sum(map(_tensor_sizes, drawing or parts.values()))
    return entry.source.parameters


def _tensor_sizes(folder: Path) -> int:
    """Number of values in a safetensors file, read from its header: eight bytes of length, then JSON."""
    path = folder / WEIGHTS
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(prod(facts["shape"]) for name, facts in header.items() if not name.endswith(("__metadata__", SCALE)))


def _whereabouts(entry: Entry) -> str:
    if isinstance(entry.source, Embedded):
        return "embedded" if all(folder.is_dir() for folder in entry.source.parts().values()) else "missing"
    from huggingface_hub import try_to_load_from_cache

    places = [entry.source.at(part) for part in entry.source.files]
    cached = all(isinstance(try_to_load_from_cache(name, file, revision=at), str) for name, file, at in places)
    return "cached" if cached else "on the hub"


def _short(count: int | None) -> str:
    if not count:
        return ""
    if count < 1e3:
        return str(count)
    if count < 1e5:
        return f"{count / 1e3:.0f} k"
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M" if count < 1e8 else f"{count / 1e6:.0f} M"
