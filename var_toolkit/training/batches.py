"""Training data as an endless sequence of batches, whose order is determined by the seed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from var_toolkit.processes import Team
from var_toolkit.training.draws import Draws, derived, epoch_order
from var_toolkit.training.recipe import Recipe


class Batch(NamedTuple):
    """This process's share of one step, or a micro-batch of it, on its device."""

    labels: Tensor  # (B,) int64
    images: Tensor | None = None  # (B, 3, h, w) in [-1, 1]
    tokens: Tensor | None = None  # (B, L) int64, all scales, coarse to fine
    moments: Tensor | None = None  # (B, 2C, h, w) float32, mean and log variance of latents
    features: Tensor | None = None  # (B, C, h, w) float32, latents before quantisation
    damaged: tuple[str, ...] = ()  # files that were replaced by other images of their classes
    captions: tuple[str, ...] | None = None  # one for each image, of data that has them
    noise: Tensor | None = None  # (B, L, C) float32, that led to the tokens (`heads.flowed`)
    judged: Tensor | None = None  # (B,) float32: how probable it is that the images show their classes
    small_moments: Tensor | None = None  # (B, 2C, h, w) float32, those of smaller images
    controls: Tensor | None = None  # (B, 3, h, w) in [-1, 1], the control image of each image
    sources: Tensor | None = None  # (B, C, h, w) float32, latents of the images that are edited

    def split(self, parts: int) -> list["Batch"]:
        """Micro-batches of equal size, in order."""
        size = len(self.labels) // parts
        of_images = {name: value for name, value in self._asdict().items() if name != "damaged" and value is not None}
        return [
            self._replace(**{name: value[first : first + size] for name, value in of_images.items()})
            for first in range(0, size * parts, size)
        ]


Caption = Callable[[int, int], str]  # the number of an image, and an epoch -> a caption of the image


class Source(Protocol):
    """Images or tokens, indexed by number."""

    def __len__(self) -> int: ...

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterable[Batch]:
        """One batch for each tensor of image numbers, in order."""
        ...


def to_unit_range(images_uint8: Tensor) -> Tensor:
    """uint8 0..255 -> float in [-1, 1]."""
    return images_uint8.float().div_(127.5).sub_(1)


def image_fields(images_uint8: Tensor) -> dict[str, Any]:
    """Images of three channels as fields of a batch; of six, the last three are their control images."""
    images, *controls = to_unit_range(images_uint8).split(3, dim=1)
    return {"images": images, "controls": controls[0] if controls else None}


def captions_of(caption: Caption | None, numbers: Tensor, epoch: int) -> tuple[str, ...] | None:
    """The captions of a batch; None without captions."""
    return None if caption is None else tuple(caption(number, epoch) for number in numbers.tolist())


class StoredArray:
    """What was computed before for every image, in a memory-mapped array, with the labels and captions of the images.

    Captions are not in the array: an image can have another one in every epoch.
    """

    field: ClassVar[str]  # of the batch, which holds the values

    def __init__(
        self, values: np.ndarray, labels: np.ndarray, device: torch.device, caption: Caption | None = None
    ) -> None:
        self.values, self.labels, self.device, self.caption = values, labels, device, caption

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        for numbers in rows:
            yield self._batch(numbers, numbers, epoch)

    def _batch(self, numbers: Tensor, places: Tensor, epoch: int) -> Batch:
        """The batch of some images, whose values are at these places of the array."""
        values = torch.from_numpy(self.values[places.numpy()]).to(self.device)
        labels = torch.from_numpy(self.labels[numbers.numpy()]).to(self.device)
        return Batch(labels, captions=captions_of(self.caption, numbers, epoch), **self._fields(values))

    def _fields(self, values: Tensor) -> dict[str, Any]:
        return {self.field: self._ready(values)}

    def _ready(self, values: Tensor) -> Tensor:
        return values.float()


class ImageArray(StoredArray):
    """Images, (N, 3, h, w) uint8, or with control images behind them, (N, 6, h, w)."""

    field = "images"

    def _fields(self, values: Tensor) -> dict[str, Any]:
        return image_fields(values)


class TokenArray(StoredArray):
    """Token maps, (N, L) of a small integer type."""

    field = "tokens"

    def _ready(self, values: Tensor) -> Tensor:
        return values.long()


class FeatureArray(StoredArray):
    """Latents before quantisation, (N, C, h, w)."""

    field = "features"


class MomentArray(StoredArray):
    """Moments of latents: (N, 2C, h, w), or twice as many, the mirror images behind; also those of `small` images.

    Whether an epoch shows an image or its mirror image, a coin decides.
    """

    field = "moments"

    def __init__(
        self,
        moments: np.ndarray,
        labels: np.ndarray,
        device: torch.device,
        seed: int = 0,
        small: np.ndarray | None = None,
    ) -> None:
        super().__init__(moments, labels, device)
        self.seed, self.small = seed, small

    def _batch(self, numbers: Tensor, places: Tensor, epoch: int) -> Batch:
        found = super()._batch(numbers, places, epoch)
        if self.small is None:
            return found
        return found._replace(small_moments=torch.from_numpy(self.small[places.numpy()]).to(self.device).float())

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        coins = torch.Generator().manual_seed(derived(self.seed, "mirror", epoch))
        mirrored = torch.randint(len(self.values) // len(self), (len(self),), generator=coins)
        for numbers in rows:
            yield self._batch(numbers, numbers + len(self) * mirrored[numbers], epoch)


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
