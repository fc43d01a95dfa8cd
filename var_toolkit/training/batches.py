"""Training data as an endless sequence of batches, whose order is determined by the seed."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from var_toolkit.processes import Team
from var_toolkit.training.draws import Draws, derived, epoch_order
from var_toolkit.training.recipe import Recipe


class Batch(NamedTuple):
    """This process's share of one step, on its device."""

    labels: Tensor  # (B,) int64
    images: Tensor | None = None  # (B, 3, h, w) in [-1, 1]
    tokens: Tensor | None = None  # (B, L) int64, all scales, coarse to fine
    moments: Tensor | None = None  # (B, 2C, h, w) float32, mean and log variance of latents
    features: Tensor | None = None  # (B, C, h, w) float32, latents before quantisation
    damaged: tuple[str, ...] = ()  # files that were replaced by other images of their classes


class Source(Protocol):
    """Images or tokens, indexed by number."""

    def __len__(self) -> int: ...

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterable[Batch]:
        """One batch for each tensor of image numbers, in order."""
        ...


def to_unit_range(images_uint8: Tensor) -> Tensor:
    """uint8 0..255 -> float in [-1, 1]."""
    return images_uint8.float().div_(127.5).sub_(1)


class ImageArray:
    """Images in a memory-mapped array, indexed directly."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, device: torch.device) -> None:
        self.images, self.labels, self.device = images, labels, device

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        for numbers in rows:
            labels = torch.from_numpy(self.labels[numbers.numpy()]).to(self.device)
            yield Batch(labels, images=to_unit_range(self._read(numbers)))

    def _read(self, numbers: Tensor) -> Tensor:
        return torch.from_numpy(self.images[numbers.numpy()]).to(self.device)


class TokenArray:
    """Token maps that were computed before, (N, L) of a small integer type."""

    def __init__(self, tokens: np.ndarray, labels: np.ndarray, device: torch.device) -> None:
        self.tokens, self.labels, self.device = tokens, labels, device

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        for numbers in rows:
            tokens = torch.from_numpy(self.tokens[numbers.numpy()].astype(np.int64))
            labels = torch.from_numpy(self.labels[numbers.numpy()])
            yield Batch(labels.to(self.device), tokens=tokens.to(self.device))


class FeatureArray:
    """Latents before quantisation that were computed before, (N, C, h, w)."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, device: torch.device) -> None:
        self.features, self.labels, self.device = features, labels, device

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        for numbers in rows:
            features = torch.from_numpy(self.features[numbers.numpy()]).to(self.device).float()
            yield Batch(torch.from_numpy(self.labels[numbers.numpy()]).to(self.device), features=features)


class MomentArray:
    """Moments of latents that were computed before: (N, 2C, h, w), or twice as many, the mirror images behind.

    Whether an epoch shows an image or its mirror image, a coin decides.
    """

    def __init__(self, moments: np.ndarray, labels: np.ndarray, device: torch.device, seed: int = 0) -> None:
        self.moments, self.labels, self.device, self.seed = moments, labels, device, seed

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        coins = torch.Generator().manual_seed(derived(self.seed, "mirror", epoch))
        mirrored = torch.randint(len(self.moments) // len(self), (len(self),), generator=coins)
        for numbers in rows:
            found = self.moments[(numbers + len(self) * mirrored[numbers]).numpy()]
            labels = torch.from_numpy(self.labels[numbers.numpy()]).to(self.device)
            yield Batch(labels, moments=torch.from_numpy(found).to(self.device).float())


def stream(source: Source, recipe: Recipe, team: Team, steps: range) -> Iterator[tuple[Draws, Batch]]:
    """Each step of `steps` with its batch. An incomplete batch at the end of an epoch is dropped."""
    per_epoch = len(source) // recipe.batch_size
    step = steps.start
    while step < steps.stop:
        epoch, place = divmod(step, per_epoch)
        count = min(per_epoch - place, steps.stop - step)
        plan = [
            Draws(recipe.seed, step + i, team.rank, team.size, recipe.batch_size, team.device) for i in range(count)
        ]
        order = epoch_order(len(source), recipe.seed, epoch)
        rows = [order[(place + i) * recipe.batch_size :][plan[i].rows] for i in range(count)]
        yield from zip(plan, source.batches(rows, epoch), strict=True)
        step += count
