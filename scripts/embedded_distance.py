"""How far the embedded models are from fresh renderings, beside the floor that a set of this size can reach.

    python scripts/embedded_distance.py
    python scripts/embedded_distance.py --count 2000 --models stilllife-var

The distance is the FID of `vargen evaluate score --features stilllife`. All rows are measured against the same half of
the fresh renderings; the floor is the other half, the tokenizer's row is that half reconstructed. The models draw every
class equally often, at their default settings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from var_toolkit.evaluation.still_life_quality import (
    BATCH,
    agreement,
    embedded_distance,
    fresh_batches,
    fresh_statistics,
    normalised,
)
from var_toolkit.pipeline import load, load_tokenizer

CLASSES = 1000


def reconstructed(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """What the embedded tokenizer keeps of uint8 pictures."""
    tokenizer = load_tokenizer("stilllife-tokenizer")
    for batch in batches:
        drawn = tokenizer.reconstruct(normalised(batch).to(next(tokenizer.parameters()).device))
        yield whole_numbers((drawn + 1) / 2)


def sampled(model: str, count: int) -> Iterator[Tensor]:
    """Samples of a model, picture i of class i % 1000 with the seed i."""
    pipe = load(model).pack()
    for at in range(0, count, BATCH):
        numbers = range(at, min(at + BATCH, count))
        output: Any = pipe([i % CLASSES for i in numbers], seeds=list(numbers), batch_size=BATCH, output_type="pt")
        yield whole_numbers(output.images)


def whole_numbers(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] as uint8, as they are in a PNG file."""
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="pictures of every row (default 10000)")
    parser.add_argument("--models", nargs="*", default=["stilllife-var", "stilllife-var-small"])
    parser.add_argument("--cache", type=Path, help="an .npz file that keeps the statistics of the reference")
    args = parser.parse_args()
    if args.count < CLASSES or args.count % CLASSES:
        parser.error(f"--count {args.count} must be a multiple of {CLASSES}, every class equally often")
    reference = fresh_statistics(args.count, cached=args.cache)
    other_half = fresh_batches(args.count, first=args.count)
    labels = torch.arange(args.count) % CLASSES
    rows = {
        "fresh renderings (floor)": lambda: iter(other_half),
        "tokenizer": lambda: reconstructed(iter(other_half)),
        **{name: lambda name=name: sampled(name, args.count) for name in args.models},
    }
    print(f"| {args.count} pictures | distance | class agreement | s |\n|---|---|---|---|")
    for name, batches in rows.items():
        began = time.perf_counter()
        bar = tqdm(batches(), name, -(-args.count // BATCH), disable=None, leave=False)
        pictures = torch.cat(list(bar))
        agreed = 100 * agreement(pictures, labels).whole
        distance = embedded_distance(pictures, reference)
        print(f"| {name} | {distance:.3f} | {agreed:.1f} % | {time.perf_counter() - began:.0f} |", flush=True)


if __name__ == "__main__":
    main()
