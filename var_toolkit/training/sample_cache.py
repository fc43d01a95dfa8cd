"""Samples of a model that other networks are trained on, drawn once and stored on disk as tokens.

Letters: B images of a batch, N images, L tokens of all maps, C channels of a code.
"""

import json
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from var_toolkit.core.bind import Run
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.pipeline import Pipeline
from var_toolkit.training.batches import Batch, TokenArray
from var_toolkit.training.code_cache import Stored, cached, hash_of, token_dtype
from var_toolkit.training.draws import derived

BATCH = 128  # images drawn at a time
FIRST_SEEDS = {"train": 0, "validation": 2**32}


def cached_samples(
    run: Run, count: int, split: str, directory: Path, *, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, a memory map (N, L), and labels (N,), int64, of `count` images that a run of one network draws.

    The file's name has a hash of the network and of how it is sampled. A killed run goes on where it was.
    """
    (backbone,) = run.unique_networks
    labels = spread_labels(count, backbone.config.num_classes, split)
    plan = json.dumps(run.plan.to_json(), sort_keys=True)
    name = f"samples-{split}-{count}-{hash_of(backbone.state_dict(), plan)}"
    stored = Stored(name, (run.schedule.total,), token_dtype(backbone.config.vocab_size), "drawing")
    pipe, first = Pipeline(run.tokenizer, backbone), FIRST_SEEDS[split]

    def tokens(start: int) -> Iterator[Tensor]:
        seeds = range(first + start, first + count)
        for batch in pipe.stream(labels[start:], seeds=seeds, plan=run.plan, batch_size=BATCH, output_type="latent"):
            yield torch.cat(batch.tokens, dim=1)

    return cached(stored, count, tokens, directory, progress=progress), labels.numpy()


class Trajectories(TokenArray):
    """Tokens of `cached_samples` with the noise that led to them, which is computed again from the seeds."""

    def __init__(
        self, tokens: np.ndarray, labels: np.ndarray, device: torch.device, *, split: str, channels: int
    ) -> None:
        super().__init__(tokens, labels, device)
        self.first, self.channels = FIRST_SEEDS[split], channels

    def _batch(self, numbers: Tensor, places: Tensor, epoch: int) -> Batch:
        noise = Noise((numbers + self.first).tolist(), self.device)
        values = noise.normal(Stream.FLOW, 0, self.values.shape[1], self.channels)
        return super()._batch(numbers, places, epoch)._replace(noise=values)


def spread_labels(count: int, classes: int, split: str) -> Tensor:
    """Labels (N,), every class as often as any other, in random order."""
    generator = torch.Generator().manual_seed(derived("labels", split))
    rounds = [torch.randperm(classes, generator=generator) for _ in range(ceil(count / classes))]
    return torch.cat(rounds)[:count]
