"""Seconds a picture of VAR at a published size, random weights: transformer and decoder apart, and the cache's bytes.

python scripts/bench_var.py --depth 16 --batch 1 8 --dtype float32 bfloat16
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from var_toolkit.backbones.var import VAR, VARConfig
from var_toolkit.pipeline import Pipeline
from var_toolkit.sampling.engine import decode
from var_toolkit.sampling.noise import Noise
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig


def random_pipeline(depth: int, dtype: torch.dtype) -> Pipeline:
    """A published architecture with random weights, the same every time."""
    torch.manual_seed(0)
    var = VAR(VARConfig.published(depth))
    var.init_weights(adaln_gamma=0.5, head=1.0)
    return Pipeline(MultiScaleVQ(MultiScaleVQConfig()).eval(), var.eval()).to(dtype=dtype)


def measure(pipe: Pipeline, batch: int, repeats: int) -> tuple[float, float, int]:
    """Median seconds a picture of the transformer and of the decoder, and cache bytes a picture."""
    plan, labels = pipe.plan(), torch.arange(batch)
    drawing, decoding, cache = [], [], 0
    for _ in range(repeats + 1):
        began = time.perf_counter()
        decoded = decode(plan, labels, Noise(range(batch)))
        drawn = time.perf_counter()
        pipe.tokenizer.decode(decoded.latent)
        drawing.append((drawn - began) / batch)
        decoding.append((time.perf_counter() - drawn) / batch)
        cache = decoded.cache_bytes // batch
    return median(drawing[1:]), median(decoding[1:]), cache  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"VAR-d{args.depth}, 256 px, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("dtype       batch  transformer  decoder    total  cache MiB   (seconds a picture)")
    for dtype in args.dtype:
        pipe = random_pipeline(args.depth, getattr(torch, dtype))
        for batch in args.batch:
            drawing, decoding, cache = measure(pipe, batch, args.repeats)
            numbers = f"{drawing:12.3f} {decoding:8.3f} {drawing + decoding:8.3f} {cache / 2**20:10.2f}"
            print(f"{dtype:11} {batch:5} {numbers}", flush=True)


if __name__ == "__main__":
    main()
