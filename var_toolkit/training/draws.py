"""Random numbers in training: those of a step follow from (seed, step, rank), so a run can be resumed."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def derived(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step in one process, or in one of its micro-batches."""

    seed: int
    step: int
    rank: int
    world_size: int
    batch_size: int
    device: torch.device
    part: int = 0  # which micro-batch, of `parts`
    parts: int = 1

    def reseed(self) -> None:
        """Makes torch's own generators (dropout, drop path) follow from seed, step and rank."""
        torch.manual_seed(derived(self.seed, "step", self.step, self.rank))

    @property
    def rows(self) -> slice:
        """The rows of this process, or of its micro-batch, in the global batch."""
        share, number = self.batch_size // (self.world_size * self.parts), self.rank * self.parts + self.part
        return slice(number * share, (number + 1) * share)

    def split(self, parts: int) -> list["Draws"]:
        """The draws of each micro-batch: together the same numbers for every image."""
        return [replace(self, part=part, parts=parts) for part in range(parts)]

    def generator(self, purpose: str) -> torch.Generator:
        """The same in every process."""
        return torch.Generator().manual_seed(derived(self.seed, purpose, self.step))

    def per_image(self, purpose: str) -> Tensor:
        """Uniform numbers in [0, 1), (B,), one for each image, which does not depend on the number of processes."""
        return torch.rand(self.batch_size, generator=self.generator(purpose))[self.rows].to(self.device)

    def numbers(self, purpose: str) -> "Numbers":
        """Random numbers of this process for each image, made on the device, which do not depend on micro-batches."""
        seed = derived(self.seed, purpose, self.step, self.rank)
        return Numbers(self.device, torch.Generator(self.device).manual_seed(seed), self.part, self.parts)


@dataclass(frozen=True)
class Numbers:
    """Random numbers on a device, of a generator there or on the CPU, or torch's own.

    Of a micro-batch, those of all of them are drawn and its own are taken; `axis` is that of the images.
    """

    device: torch.device
    generator: torch.Generator | None = None
    part: int = 0
    parts: int = 1

    def uniform(self, *shape: int, axis: int = 0) -> Tensor:
        """In [0, 1)."""
        return self._own(torch.rand(self._all(shape, axis), generator=self.generator, device=self._home), axis)

    def normal(self, *shape: int, axis: int = 0) -> Tensor:
        """Standard normal."""
        return self._own(torch.randn(self._all(shape, axis), generator=self.generator, device=self._home), axis)

    def whole(self, end: int, *shape: int, axis: int = 0) -> Tensor:
        """Whole numbers below `end`."""
        return self._own(torch.randint(end, self._all(shape, axis), generator=self.generator, device=self._home), axis)

    @property
    def _home(self) -> torch.device:
        return self.device if self.generator is None else self.generator.device

    def _all(self, shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
        return (*shape[:axis], shape[axis] * self.parts, *shape[axis + 1 :])

    def _own(self, found: Tensor, axis: int) -> Tensor:
        return found.chunk(self.parts, dim=axis)[self.part].to(self.device)


def without_some(labels_B: Tensor, draws: Draws, share: float, null_class: int) -> Tensor:
    """Labels, a share of them replaced by the null class, which guidance needs."""
    return torch.where(draws.per_image("class dropout") < share, null_class, labels_B)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of images in an epoch, (count,) int64, equal in every process."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived(seed, "epoch", epoch)))
