"""Networks with random weights, to measure speed and memory, which do not depend on the weights' values."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from var_toolkit.conditions.prompt_embeds import PromptEmbeds
from var_toolkit.conditions.text import TextInput
from var_toolkit.devices import find_device
from var_toolkit.loading import Source, skeleton
from var_toolkit.pipeline import Pipeline
from var_toolkit.precision import precision_of

# A prime, so that repeating the block over a matrix does not make two of its rows equal.
BLOCK = 1_000_003
TOKENS = 32  # of a prompt: a sentence or two


def random_pipeline(source: Source, *, device: str = "auto", dtype: str | torch.dtype = torch.float32) -> Pipeline:
    """The pipeline that `load` returns, with fixed random weights instead of its own; nothing is downloaded."""
    where = find_device(device)
    pipe = skeleton(source)
    precision = precision_of(dtype, where, pipe.backbones)
    pipe.to(dtype=precision.wide)
    networks: tuple[Any, ...] = (pipe.tokenizer, *pipe.networks)
    for network in networks:
        randomise(network.to_empty(device=where).eval())
    return pipe.quantize(precision.quantized) if precision.quantized else pipe


def random_prompts(text: TextInput, count: int) -> PromptEmbeds:
    """Features of as many prompts of `TOKENS` tokens, which no encoder has read."""
    tokens, generator = min(TOKENS, text.longest), torch.Generator().manual_seed(0)
    features = torch.randn(count, tokens, text.channels, generator=generator)
    pooled = None if text.pooled is None else torch.randn(count, text.pooled, generator=generator)
    return PromptEmbeds(features, torch.ones(count, tokens, dtype=torch.bool), pooled)


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Fill a network in place: biases 0, gains of norms 1, everything else normal with variance 1 / fan-in.

    One block of numbers is repeated through all weights: drawing billions would take longer than most measurements.
    """
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))
    for name, weight in network.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            _repeat(block * (weight.shape[0] / weight.numel()) ** 0.5, weight)
    for buffer in network.buffers():
        buffer.zero_()


def _repeat(block: torch.Tensor, weight: torch.Tensor) -> None:
    flat = weight.as_strided((weight.numel(),), (1,))  # in the order of memory, which is not that of the dimensions
    block = block.to(weight.device, weight.dtype)
    for at in range(0, len(flat), len(block)):
        piece = flat[at : at + len(block)]
        piece.copy_(block[: len(piece)])
