"""Quality of the embedded models: the tokenizer's PSNR, the classifier's accuracy, and class agreement of samples.

    python scripts/judge_embedded.py

All renderings have seeds that no training used; samples are one per class with the models' default settings.
"""

from __future__ import annotations

import argparse
import time
from itertools import product

import torch
from torch import Tensor

from var_toolkit.images import to_uint8
from var_toolkit.loading import load
from var_toolkit.pipeline import Pipeline
from var_toolkit.still_life.quality import BATCH, agreement, fresh_batches, normalised


def psnr(pipe: Pipeline, images: Tensor) -> float:
    """Mean PSNR of the tokenizer's reconstructions, in dB."""
    batches = map(normalised, images.split(BATCH))
    errors = [(pipe.tokenizer.reconstruct(x) - x).square().mean((1, 2, 3)) / 4 for x in batches]
    return float((-10 * torch.cat(errors).log10()).mean())


def verdict(images: Tensor, labels: Tensor) -> str:
    """Share of images whose label the classifier predicts: all parts, and each part."""
    found = agreement(images, labels)
    parts = f"solid {100 * found.solid:.1f}, colour {100 * found.colour:.1f}, ground {100 * found.ground:.1f}"
    return f"{100 * found.whole:.1f} % ({parts})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models",
        nargs="*",
        default=["stilllife-var", "stilllife-var-small"],
        help="the first one's tokenizer is judged",
    )
    parser.add_argument(
        "--cfg",
        type=float,
        nargs="*",
        default=[None],
        help="guidance to compare, as its authors count it (default: the model's own)",
    )
    parser.add_argument("--dtype", nargs="*", default=["float32"], help="precisions to compare")
    parser.add_argument("--images", type=int, default=1000, help="of each model, of classes spread over the thousand")
    args = parser.parse_args()
    images, labels = torch.cat(list(fresh_batches(2000))), torch.arange(2000) % 1000
    print(f"classifier on 2000 fresh renderings: {verdict(images, labels)}")
    print(f"tokenizer on these: PSNR {psnr(load(args.models[0], device='cpu'), images):.2f} dB")
    drawn_labels = torch.arange(args.images) * 1000 // args.images
    for name, dtype in product(args.models, args.dtype):
        pipe = load(name, device="cpu", dtype=dtype).pack()
        for cfg in args.cfg:
            began = time.perf_counter()
            drawn = pipe(drawn_labels.tolist(), seeds=range(args.images), cfg=cfg, batch_size=BATCH, output_type="pt")
            seconds = time.perf_counter() - began
            found = verdict(to_uint8(drawn.images), drawn_labels)
            setting = f"{dtype}, " + ("default guidance" if cfg is None else f"cfg {cfg:g}")
            print(f"{name}, {setting}: class agreement {found}; {args.images / seconds:.1f} images/s", flush=True)


if __name__ == "__main__":
    main()
