"""The data section of a recipe -> images to train on, and images held out."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from var_toolkit.conditions.class_names import SYNSET, Named, kept
from var_toolkit.data.folder_listing import told
from var_toolkit.data.worker_batches import worker_batches
from var_toolkit.processes import Team
from var_toolkit.training.batches import Batch, ImageArray, Source, to_unit_range
from var_toolkit.training.draws import derived
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import Data, FoldersData, Recipe, SamplesData, StillLifesData

STILL_LIFE_CLASSES = 1000
HELD_OUT_OF_FOLDERS = 2_048  # decoded images stay in memory, as bytes


class FolderImages(torch.utils.data.Dataset[tuple[Tensor, int, bool]]):
    """Images in folders, decoded and cropped by worker processes; item i also says whether it was replaced."""

    def __init__(
        self,
        data: FoldersData,
        root: str,
        device: torch.device,
        *,
        train: bool,
        seed: int = 0,
        flat: bool = False,
        skip_damaged: bool = False,
    ) -> None:
        from var_toolkit.data.folders import ClassFolders

        self.folders = ClassFolders(
            Path(root), data.size, train, flip=data.flip, seed=seed, flat=flat, skip_damaged=skip_damaged
        )
        self.workers, self.device = data.workers, device

    def __getitem__(self, index: int) -> tuple[Tensor, int, bool]:
        return self.folders.read(index)

    def __len__(self) -> int:
        return len(self.folders)

    def in_order(self, start: int, size: int) -> Iterator[Tensor]:
        """Bytes of the images from one on, (size, 3, h, w)."""
        rows = [range(at, min(at + size, len(self))) for at in range(start, len(self), size)]
        for numbers, (images, _, replaced) in zip(rows, worker_batches(self, rows, workers=self.workers), strict=True):
            _tell_replaced(self._names(numbers, replaced))
            yield images

    def _names(self, indices: Sequence[int], replaced: Tensor) -> tuple[str, ...]:
        return tuple(str(self.folders.path(index)) for index, gone in zip(indices, replaced, strict=True) if gone)

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        self.folders.set_epoch(epoch)
        chosen, pin = [numbers.tolist() for numbers in rows], self.device.type == "cuda"
        loaded = worker_batches(self, chosen, workers=self.workers, pin=pin)
        for numbers, (images, labels, replaced) in zip(chosen, loaded, strict=True):
            moved = images.to(self.device, non_blocking=True)
            damaged = self._names(numbers, replaced)
            yield Batch(labels.to(self.device, non_blocking=True), images=to_unit_range(moved), damaged=damaged)


class HeldOut:
    """This process's share of the held-out images or tokens; a batch is on the device only while it is in use."""

    def __init__(self, source: Source | None, rows: Sequence[Tensor]) -> None:
        self.source, self.rows = source, rows

    def __iter__(self) -> Iterator[Batch]:
        if self.source is not None:
            yield from self.source.batches(self.rows, 0)

    def first(self) -> Batch | None:
        """The first batch, the same every time; None if nothing is held out."""
        return next(iter(self), None)


def require_size(data: Data, side: int) -> None:
    """Refuse images that a tokenizer for `side` x `side` pixels cannot read, before any of them is made."""
    from var_toolkit.still_life.image_cache import SIZE

    if isinstance(data, SamplesData):  # drawn as tokens
        return
    size = data.size if isinstance(data, FoldersData) else SIZE
    if size != side:
        raise ValueError(f"data: images have {size} x {size} pixels, but the tokenizer reads {side} x {side}")


def images_of(
    recipe: Recipe, workplace: Workplace, classes: int | None = None, *, flat: bool = False
) -> tuple[Source, HeldOut]:
    """Images to train on, of as many classes as given, and those held out. What does not fit is refused first.

    With `flat` labels do not matter, and a folder of images without class folders is accepted.
    """
    data = recipe.data
    if isinstance(data, FoldersData):
        return _folders(data, recipe, workplace, classes, flat)
    if classes is not None:
        require_still_life_classes(classes)
    source = ImageArray(*still_lifes(workplace, data.count, "train"), workplace.team.device)
    if not data.validation_count:
        return source, HeldOut(None, [])
    held_out = ImageArray(*still_lifes(workplace, data.validation_count, "validation"), workplace.team.device)
    return source, HeldOut(held_out, shares(len(held_out), workplace.team, recipe.batch_size))


def require_still_life_classes(classes: int) -> None:
    if classes != STILL_LIFE_CLASSES:
        raise ValueError(f"model: num_classes is {classes}, but there are {STILL_LIFE_CLASSES} classes of still lifes")


def shares(count: int, team: Team, size: int) -> list[Tensor]:
    """Which of `count` images this process evaluates: equal shares, so that means over processes can be averaged."""
    mine = torch.arange(count // team.size * team.size)[team.rank :: team.size]
    return [part for part in mine.split(size) if len(part)]


def still_lifes(workplace: Workplace, count: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    from var_toolkit.still_life.data_set import cached

    return cached(workplace.cache_dir, count, split, progress=workplace.team.leads)


def class_names_of(data: Data, source: Source) -> Named:
    """The class names that what is trained on these images is delivered with."""
    if isinstance(data, StillLifesData):
        return "still-lifes"
    if isinstance(data, FoldersData) and isinstance(source, FolderImages):
        return _named(data, source.folders.classes)
    return None


def _named(data: FoldersData, folders: tuple[str, ...]) -> Named:
    of_folders = kept(folders, len(folders))
    if data.class_names is None:
        return of_folders
    named = kept(data.class_names, len(folders))
    if named == "imagenet" != of_folders and all(SYNSET.fullmatch(name) for name in folders):
        raise ValueError(f"data: class_names is 'imagenet', but the folders of {data.root} are not its 1000 synsets")
    return named


def _folders(
    data: FoldersData, recipe: Recipe, workplace: Workplace, classes: int | None, flat: bool
) -> tuple[FolderImages, HeldOut]:
    team = workplace.team
    how: Any = {"flat": flat, "skip_damaged": workplace.skip_damaged}
    source = FolderImages(data, data.root, team.device, train=True, seed=derived(recipe.seed, "crops"), **how)
    found = source.folders.classes
    _tell(source.folders.notes, team)
    if classes is not None and len(found) != classes:
        raise ValueError(f"model: num_classes is {classes}, but {data.root} has {len(found)} class folders")
    if classes is not None:
        _named(data, found)  # refuses names that do not fit
    if data.validation_root is None:
        return source, HeldOut(None, [])
    other = FolderImages(data, data.validation_root, team.device, train=False, **how)
    _tell(other.folders.notes, team)
    # A flat folder has no classes, and labels do not matter then.
    if found and other.folders.classes and other.folders.classes != found:
        odd = sorted(set(found) ^ set(other.folders.classes))[0]
        raise ValueError(
            f"data: {data.root} and {data.validation_root} must have the same class folders, "
            f"but only one of them has {odd!r}"
        )
    held_out = _decoded(other, team)
    return source, HeldOut(held_out, list(torch.arange(len(held_out)).split(recipe.batch_size)) if held_out else [])


def _decoded(folders: FolderImages, team: Team) -> ImageArray | None:
    """This process's share of images spread over all classes, as bytes on the CPU."""
    chosen = np.linspace(0, len(folders) - 1, min(HELD_OUT_OF_FOLDERS, len(folders))).astype(np.int64)
    indices = [int(chosen[number]) for part in shares(len(chosen), team, 1) for number in part]
    if not indices:
        return None
    images, labels, replaced = zip(*[folders[index] for index in indices], strict=True)
    _tell_replaced([str(folders.folders.path(i)) for i, gone in zip(indices, replaced, strict=True) if gone])
    return ImageArray(torch.stack(images).numpy(), np.array(labels), folders.device)


def _tell(notes: Sequence[str], team: Team) -> None:
    for note in notes if team.leads else ():
        print(note, file=sys.stderr)


def _tell_replaced(names: Sequence[str]) -> None:
    if names:
        print(told(names, "damaged image was", "damaged images were", "replaced"), file=sys.stderr)
