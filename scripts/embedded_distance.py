"""Fréchet distance of the rows of a bench table to fresh renderings, and the floor for sets of this size.

    python scripts/embedded_distance.py --out distances.json
    python scripts/embedded_distance.py --only "CoDe*" --out code.json & \\
    python scripts/embedded_distance.py --only VAR "VARiant*" --out var.json

The distance is the FID of `vargen evaluate score --features stilllife`. The reference of all rows is the same half of
the fresh renderings; the floor is the other half, and the tokenizer's row is its reconstruction of that half. A row
samples every class equally often, with the networks, plan and dtype of `vargen bench`.

Every row is written as soon as it is measured. The same command continues with rows that are missing or whose weights,
settings or number of images have changed. Parallel processes need different output files, but can share the cache.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from var_toolkit.evaluation.bench.rounds import size_of
from var_toolkit.evaluation.bench.table import Row, find_table, matching, read_table
from var_toolkit.evaluation.bench.worker import Worker
from var_toolkit.evaluation.frechet import Statistics
from var_toolkit.evaluation.sample_set import run_fingerprint
from var_toolkit.files import check_writable, write_whole
from var_toolkit.images import to_uint8
from var_toolkit.loading import load_tokenizer
from var_toolkit.still_life.quality import (
    agreement,
    embedded_distance,
    fresh_batches,
    fresh_statistics,
    normalised,
)

CLASSES = 1000
FLOOR, TOKENIZER = "fresh renderings", "tokenizer"
JUDGED_BY = "stilllife-tokenizer"


@dataclass(frozen=True)
class Source:
    """The images of one row: batches of uint8 (B, 3, 64, 64); image i has class i % 1000."""

    batches: Callable[[], Iterator[Tensor]]
    facts: dict[str, Any]  # everything that determines the images


def reconstructed(count: int) -> Iterator[Tensor]:
    """Reconstructions of the other half of the renderings by the embedded tokenizer."""
    tokenizer = load_tokenizer(JUDGED_BY, device="cpu")
    for batch in fresh_batches(count, first=count):
        yield to_uint8((tokenizer.reconstruct(normalised(batch)) + 1) / 2)


def source(name: str, rows: dict[str, Row], count: int) -> Source:
    """The source of a row by name."""
    if name == FLOOR:
        return Source(lambda: iter(fresh_batches(count, first=count)), {"plan_in_words": "the floor"})
    if name == TOKENIZER:
        return Source(partial(reconstructed, count), {"plan_in_words": f"renderings through {JUDGED_BY}"})
    worker = Worker(rows[name], torch.get_num_threads())
    drawn_with = {key: value for key, value in asdict(rows[name]).items() if key in ("model", "plan", "dtype")}
    facts = {
        "plan_in_words": "; ".join(str(worker.run).splitlines()),
        **drawn_with,
        "device": worker.pipe.device.type,
        "weights": run_fingerprint(worker.run),
    }
    return Source(partial(worker.drawn, count), facts)


def measure(name: str, found: Source, count: int, reference: Statistics) -> dict[str, Any]:
    """Sample the images of a row and measure them."""
    began = time.perf_counter()
    bar = tqdm(total=count, desc=name, unit=" images", disable=None, leave=False)
    parts = []
    for batch in found.batches():
        parts.append(batch)
        bar.update(len(batch))
    bar.close()
    seconds, images = time.perf_counter() - began, torch.cat(parts)
    return {
        "name": name,
        "images": count,
        **found.facts,
        "distance": embedded_distance(images, reference),
        "agreement": asdict(agreement(images, torch.arange(count) % CLASSES)),
        "seconds": round(seconds, 1),
    }


def written_rows(out: Path | None) -> list[dict[str, Any]]:
    """The rows of an earlier run; ValueError if the file is something else."""
    if out is None or not out.exists():
        return []
    try:
        rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
        return [row for row in rows if {"name", "images", "distance", "agreement", "seconds"} <= row.keys()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{out} was not written by this script; choose another file with --out") from None


def write(out: Path | None, rows: list[dict[str, Any]]) -> None:
    """Write all rows atomically."""
    if out is not None:
        write_whole(out, lambda to: to.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8"))


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| row | images | distance | class agreement | solid | colour | ground | s |", f"|---|{'---:|' * 7}"]
    for row in rows:
        shares = " | ".join(f"{100 * row['agreement'][part]:.1f} %" for part in ("whole", "solid", "colour", "ground"))
        name = row["name"].replace("|", "\\|")
        lines.append(f"| {name} | {row['images']} | {row['distance']:.3g} | {shares} | {row['seconds']:.0f} |")
    return "\n".join(lines)


def chosen_rows(args: argparse.Namespace) -> tuple[list[str], dict[str, Row]]:
    """The names to measure, in order, and their rows of the table; ValueError for invalid options."""
    if args.count < CLASSES or args.count % CLASSES:
        raise ValueError(
            f"--count {args.count} must be a multiple of {CLASSES}, since every class is sampled equally often"
        )
    rows = {row.name: row for row in read_table(find_table(args.table)).rows}
    names = matching([FLOOR, TOKENIZER, *rows], args.only or ["*"])
    chosen = {name: replace(rows[name], quality=args.count) for name in names if name in rows}
    for row in chosen.values():
        size_of(row)
    for path in (args.out, args.cache):
        if path is not None:
            check_writable(path.parent)
    return names, chosen


def is_current(row: dict[str, Any], name: str, count: int, facts: dict[str, Any]) -> bool:
    """Whether a written row is of exactly these images."""
    wanted = json.loads(json.dumps({"name": name, "images": count, **facts}))
    return all(row.get(key) == value for key, value in wanted.items())


def run(args: argparse.Namespace) -> None:
    """Measure all requested rows that are missing, and print all requested rows."""
    names, rows = chosen_rows(args)
    written = written_rows(args.out)
    reference = fresh_statistics(args.count, cached=args.cache)
    for name in names:
        found = source(name, rows, args.count)
        if any(is_current(row, name, args.count, found.facts) for row in written):
            print(f"{name}: already measured", flush=True)
            continue
        one = measure(name, found, args.count, reference)
        written = [*(row for row in written if row["name"] != name), one]
        write(args.out, written)
        print(f"{name}: distance {one['distance']:.3f}, {one['seconds']:.0f} s", flush=True)
    print("", as_markdown([row for name in names for row in written if row["name"] == name]), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", default="stilllife", help="a bench table, as for `vargen bench` (default stilllife)")
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", help=f'rows to measure, such as "CoDe*"; also "{FLOOR}", "{TOKENIZER}"'
    )
    parser.add_argument("--count", type=int, default=10_000, help="images per row (default 10000)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="file for the measured rows; an existing one is continued"
    )
    parser.add_argument("--cache", type=Path, help="an .npz file to store the statistics of the reference in")
    try:
        run(parser.parse_args())
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
