"""Samples of a next-token model that its proposers are trained on, drawn once and stored on disk as tokens.

Letters: N images, L tokens.
"""

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from var_toolkit.core.plan import Plan
from var_toolkit.pipeline import Pipeline
from var_toolkit.training.code_cache import Stored, cached, hash_of, token_dtype
from var_toolkit.training.draws import derived

BATCH = 128  # images drawn at a time
FIRST_SEEDS = {"train": 0, "validation": 2**32}


def cached_samples(
    plan: Plan, count: int, split: str, directory: Path, *, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, a memory map (N, L), and labels (N,), int64, of `count` images that a plan of one stage draws.

    The file's name has a hash of the network and of how it is sampled. A killed run goes on where it was.
    """
    (stage,) = plan.stages
    backbone, labels = stage.backbone, spread_labels(count, stage.backbone.config.num_classes, split)
    settings = (stage.guidance, stage.top_k, stage.top_p, stage.temperature, stage.guided_tokens)
    assert isinstance(backbone, torch.nn.Module)
    name = f"samples-{split}-{count}-{hash_of(backbone.state_dict(), repr(settings))}"
    stored = Stored(name, (backbone.config.tokens,), token_dtype(backbone.config.vocab_size), "drawing")
    drawing: Any = (plan.tokenizer, backbone)
    pipe, first = Pipeline(*drawing), FIRST_SEEDS[split]

    def tokens(start: int) -> Iterator[Tensor]:
        seeds = range(first + start, first + count)
        for batch in pipe.stream(labels[start:], seeds=seeds, plan=plan, batch_size=BATCH, output_type="latent"):
            yield batch.tokens[0]

    return cached(stored, count, tokens, directory, progress=progress), labels.numpy()


def spread_labels(count: int, classes: int, split: str) -> Tensor:
    """Labels (N,), every class as often as any other, in random order."""
    generator = torch.Generator().manual_seed(derived("labels", split))
    rounds = [torch.randperm(classes, generator=generator) for _ in range(ceil(count / classes))]
    return torch.cat(rounds)[:count]
