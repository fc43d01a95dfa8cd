"""What drawing by a plan will cost, computed from sizes alone: nothing is drawn, and no weights are needed."""

from __future__ import annotations

import time
from math import prod
from typing import Any

import torch

from var_toolkit.core.bind import Run
from var_toolkit.core.plan import Tokens
from var_toolkit.models.layers.float8_linear import bytes_of
from var_toolkit.models.layers.int8_layer import is_quantized, weights_of

FLOAT32 = 4  # bytes
WARM_UP = 3
TRIALS = 5


def forecast(run: Run, *, images: int, batch: int, dtype: str) -> dict[str, Any]:
    """A run and its cost in words and numbers, with a guess at the time on this CPU. The networks may be skeletons.

    `dtype` is that of all that is not in 8 bits.
    There is no guess for next-token models: single tokens are bound by memory and calls, not by multiply-adds.
    """
    counted, decoder = run.cost(), run.candidates * decoder_multiply_adds(run)
    wide = getattr(torch, dtype)
    networks: list[Any] = [run.decoder, run.tokenizer, *run.unique_networks]
    held = {id(p): p for network in networks for p in weights_of(network)}.values()
    weights = sum(bytes_of(p, wide) for p in held)
    told = {
        "plan": run.plan.to_json(),
        "plan_in_words": "; ".join(str(run).splitlines()),
        "forward_passes_per_batch": counted.forward_passes,
        **({"velocity_evaluations_per_batch": counted.evaluations} if counted.evaluations else {}),
        "giga_multiply_adds_per_image": round(counted.multiply_adds / 1e9, 3),
        "decoder_giga_multiply_adds": round(decoder / 1e9, 3),
        "weights_megabytes": round(weights / 1e6, 1),
        "cache_megabytes_per_batch": round(counted.cache_values * wide.itemsize * min(batch, images) / 1e6, 1),
    }
    if (searched := _candidate_values(run)) > 0:
        told["candidates_megabytes_per_batch"] = round(searched * FLOAT32 * min(batch, images) / 1e6, 1)
    if not any(isinstance(step.places, Tokens) for step in run.plan.steps):
        both = (run.unique_networks, [run.decoder])
        backbone, last = (_speed(torch.int8 if any(map(is_quantized, some)) else wide) for some in both)
        seconds = images * (counted.multiply_adds / backbone + decoder / last)
        told["seconds_on_this_cpu_about"] = float(f"{seconds:.2g}")
    return told


def _candidate_values(run: Run) -> int:
    """Features, logits and latents of all candidates of one image, at the scale where they are the most."""
    found = [0]
    latent = run.tokenizer.channels * prod(_latent_size(run))
    for one in run.steps:
        if one.step.search is not None:
            config, tokens = one.network.config, run.schedule.lengths[one.step.scale]
            drawn = one.rows * tokens * (config.embed_dim + getattr(config, "vocab_size", 0))
            count = one.step.search.count
            found.append(one.step.head.computations(count) * drawn + count * latent)
    return max(found)


def _latent_size(run: Run) -> tuple[int, int]:
    if hasattr(run.pyramid, "groups"):  # a sequence of tokens, whatever the size of the image
        return 1, run.schedule.total
    height, width = run.schedule.image_size(run.tokenizer.downsample)
    return height // run.tokenizer.latent_pixels, width // run.tokenizer.latent_pixels


def decoder_multiply_adds(run: Run) -> int:
    """Multiply-adds of what decodes the latent of one image."""
    from copy import deepcopy

    from torch.utils.flop_counter import FlopCounterMode

    decoder = deepcopy(run.decoder).to("meta")
    latent = torch.zeros(1, run.tokenizer.channels, *_latent_size(run), device="meta")
    with FlopCounterMode(display=False) as counter:
        decoder.decode(latent)
    return counter.get_total_flops() // 2


def _speed(dtype: torch.dtype) -> float:
    """Multiply-adds a second of a matrix product of a transformer's shape, the median of a few."""
    m, k, n = 64, 512, 1024  # small enough for processors that emulate the dtype: those take 100 times as long
    a, b = torch.ones(m, k, dtype=dtype), torch.ones(k, n, dtype=dtype)
    multiply = torch._int_mm if dtype == torch.int8 else torch.mm
    seconds = []
    for _ in range(WARM_UP + TRIALS):
        began = time.perf_counter()
        multiply(a, b)
        seconds.append(time.perf_counter() - began)
    return m * k * n / sorted(seconds[WARM_UP:])[TRIALS // 2]
