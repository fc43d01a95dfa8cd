"""Random numbers in training: those of a step follow from (seed, step, rank), so a run can be resumed."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def derived(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step in one process."""

    seed: int
    step: int
    rank: int
    world_size: int
    batch_size: int
    device: torch.device

    def reseed(self) -> None:
        """Makes torch's own generators (drop path, noise) follow from seed, step and rank."""
        torch.manual_seed(derived(self.seed, "step", self.step, self.rank))

    @property
    def rows(self) -> slice:
        """This process's rows of the global batch."""
        share = self.batch_size // self.world_size
        return slice(self.rank * share, (self.rank + 1) * share)

    def generator(self, purpose: str) -> torch.Generator:
        """The same in every process."""
        return torch.Generator().manual_seed(derived(self.seed, purpose, self.step))

    def per_image(self, purpose: str) -> Tensor:
        """Uniform numbers in [0, 1), (B,), one for each image, which does not depend on the number of processes."""
        return torch.rand(self.batch_size, generator=self.generator(purpose))[self.rows].to(self.device)


@dataclass(frozen=True)
class Numbers:
    """Random numbers on a device: torch's own, or of a generator of the CPU, which are the same every time."""

    device: torch.device
    generator: torch.Generator | None = None

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1)."""
        return self._moved(torch.rand(shape, generator=self.generator, device=self._home))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        return self._moved(torch.randn(shape, generator=self.generator, device=self._home))

    def whole(self, end: int, *shape: int) -> Tensor:
        """Whole numbers below `end`."""
        return self._moved(torch.randint(end, shape, generator=self.generator, device=self._home))

    @property
    def _home(self) -> torch.device:
        return self.device if self.generator is None else self.generator.device

    def _moved(self, found: Tensor) -> Tensor:
        return found.to(self.device)


def without_some(labels_B: Tensor, draws: Draws, share: float, null_class: int) -> Tensor:
    """Labels, a share of them replaced by the null class, which guidance needs."""
    return torch.where(draws.per_image("class dropout") < share, null_class, labels_B)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of images in an epoch, (count,) int64, equal in every process."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived(seed, "epoch", epoch)))
