"""The data section of a recipe -> images to train on, and images held out."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from var_toolkit.conditions.class_names import SYNSET, Named, kept
from var_toolkit.data.caption_files import Captioned, Fields, list_captioned
from var_toolkit.data.captioned_images import CaptionedImages
from var_toolkit.data.cropped_images import CroppedImages
from var_toolkit.data.folder_listing import told
from var_toolkit.data.folders import ClassFolders
from var_toolkit.data.steered_folders import SteeredFolders
from var_toolkit.data.worker_batches import worker_batches
from var_toolkit.processes import Team
from var_toolkit.training.batches import Batch, Caption, ImageArray, Source, captions_of, image_fields
from var_toolkit.training.draws import derived, epoch_order
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.recipe import (
    MOST_HELD_OUT,
    CaptionsData,
    Data,
    FoldersData,
    Recipe,
    SamplesData,
    SceneEditsData,
    ScenesData,
    StillLifesData,
)

STILL_LIFE_CLASSES = 1000


class FileImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images in files, decoded and cropped by worker processes; an item says which image took its place, if any did."""

    def __init__(
        self, files: CroppedImages, workers: int, device: torch.device, caption: Caption | None = None
    ) -> None:
        self.files, self.workers, self.device, self.caption = files, workers, device, caption

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.files.read(index)

    def __len__(self) -> int:
        return len(self.files)

    def in_order(self, start: int, size: int) -> Iterator[Tensor]:
        """Bytes of the images from one on, (size, 3, h, w); of those with control images (size, 6, h, w)."""
        rows = [torch.arange(len(self))[at : at + size] for at in range(start, len(self), size)]
        for images, _, damaged in self._loaded(rows):
            _tell_replaced(damaged)
            yield images

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        self.files.set_epoch(epoch)
        for images, shown, damaged in self._loaded(rows, pin=self.device.type == "cuda"):
            labels = torch.from_numpy(self.files.labels[shown.numpy()])
            yield Batch(
                labels.to(self.device, non_blocking=True),
                **image_fields(images.to(self.device, non_blocking=True)),
                damaged=damaged,
                captions=captions_of(self.caption, shown, epoch),
            )

    def _loaded(self, rows: Sequence[Tensor], pin: bool = False) -> Iterator[tuple[Tensor, Tensor, tuple[str, ...]]]:
        """Batches of bytes, the numbers of the images that they show, and the names of damaged ones."""
        loaded = worker_batches(self, [numbers.tolist() for numbers in rows], workers=self.workers, pin=pin)
        for numbers, (images, shown) in zip(rows, loaded, strict=True):
            yield images, shown, tuple(str(self.files.file(index)) for index in numbers[numbers != shown].tolist())


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
    from var_toolkit.still_life import image_cache, scene_drawing

    if isinstance(data, SamplesData):  # drawn as tokens
        return
    if isinstance(data, FoldersData | CaptionsData):
        size = data.size
    else:
        size = scene_drawing.SIZE if isinstance(data, ScenesData | SceneEditsData) else image_cache.SIZE
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
    if isinstance(data, ScenesData | CaptionsData) and classes is not None:
        raise ValueError(f"data: {data.kind} have no classes; use an objective that reads captions")
    if isinstance(data, ScenesData):
        return _scenes(data, recipe, workplace)
    if isinstance(data, CaptionsData):
        return _captioned(data, recipe, workplace)
    if classes is not None:
        require_still_life_classes(classes)

    def drawn(count: int, split: str) -> ImageArray:
        return ImageArray(*still_lifes(workplace, count, split), workplace.team.device)

    return rendered(data, drawn, recipe, workplace)


def rendered(
    data: StillLifesData | ScenesData | SceneEditsData | SamplesData,
    drawn: Callable[[int, str], Source],
    recipe: Recipe,
    workplace: Workplace,
) -> tuple[Source, HeldOut]:
    """Images of the two splits, by a function of their number and the split."""
    source = drawn(data.count, "train")
    if not data.validation_count:
        return source, HeldOut(None, [])
    held_out = drawn(data.validation_count, "validation")
    return source, HeldOut(held_out, shares(len(held_out), workplace.team, recipe.at_a_time))


def _scenes(data: ScenesData, recipe: Recipe, workplace: Workplace) -> tuple[Source, HeldOut]:
    """Scenes, whose labels are their numbers (`still_life.scenes.scene_of`), with captions.

    Those held out have captions that no scene is trained with.
    """
    from var_toolkit.still_life.captions import training_caption, unseen_caption
    from var_toolkit.still_life.scenes import scene_of

    def unseen(number: int, epoch: int) -> str:
        return unseen_caption(scene_of(number, "validation"), number, from_left=True).text

    def drawn(count: int, split: str) -> ImageArray:
        caption = training_caption if split == "train" else unseen
        return ImageArray(scenes(workplace, count, split), np.arange(count), workplace.team.device, caption)

    return rendered(data, drawn, recipe, workplace)


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


def scenes(workplace: Workplace, count: int, split: str) -> np.ndarray:
    """The first images of a split of scenes, uint8 (count, 3, 128, 128)."""
    from var_toolkit.still_life.image_cache import cached_images
    from var_toolkit.still_life.scene_data import SCENES

    return cached_images(SCENES, workplace.cache_dir, count, split, progress=workplace.team.leads)


def edited_scenes(workplace: Workplace, count: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The first scenes of a split before and after their edits, uint8 (count, 3, 128, 128) each."""
    from var_toolkit.still_life.image_cache import cached_images
    from var_toolkit.still_life.scene_data import SCENE_EDITS

    before = scenes(workplace, count, split)
    return before, cached_images(SCENE_EDITS, workplace.cache_dir, count, split, progress=workplace.team.leads)


def class_names_of(data: Data, source: Source) -> Named:
    """The class names that what is trained on these images is delivered with."""
    if isinstance(data, StillLifesData):
        return "still-lifes"
    if isinstance(data, SamplesData):
        return data.class_names
    if isinstance(data, FoldersData) and isinstance(source, FileImages) and isinstance(source.files, ClassFolders):
        return _named(data, source.files.classes)
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
) -> tuple[FileImages, HeldOut]:
    how: Any = {"flat": flat, "skip_damaged": workplace.skip_damaged}
    seed = derived(recipe.seed, "crops")
    folders = _opened(data.root, data.control_root, data.size, train=True, flip=data.flip, seed=seed, **how)
    _tell(folders.notes, workplace.team)
    found = folders.classes
    # An adapter may learn some of the classes alone, the first ones.
    if classes is not None and (len(found) > classes or (len(found) < classes and recipe.adapter is None)):
        raise ValueError(f"model: num_classes is {classes}, but {data.root} has {len(found)} class folders")
    if classes is not None:
        _named(data, found)  # refuses names that do not fit
    source = FileImages(folders, data.workers, workplace.team.device)
    if data.validation_root is None:
        return source, HeldOut(None, [])
    other = _opened(data.validation_root, data.validation_control_root, data.size, train=False, **how)
    _tell(other.notes, workplace.team)
    # A flat folder has no classes, and labels do not matter then.
    if found and other.classes and other.classes != found:
        odd = sorted(set(found) ^ set(other.classes))[0]
        raise ValueError(
            f"data: {data.root} and {data.validation_root} must have the same class folders, "
            f"but only one of them has {odd!r}"
        )
    return source, _decoded(other, workplace.team, recipe.batch_size)


def _opened(root: str, control_root: str | None, size: int, **how: Any) -> ClassFolders:
    return ClassFolders(root, size, **how) if control_root is None else SteeredFolders(root, control_root, size, **how)


def _captioned(data: CaptionsData, recipe: Recipe, workplace: Workplace) -> tuple[FileImages, HeldOut]:
    found, held_out = _listed(data.root, data, workplace), data.validation_count
    if held_out >= len(found.files):
        raise ValueError(f"data: validation_count is {held_out}, but {data.root} has only {len(found.files)} images")
    # Which images are held out follows from their number alone, so that runs with several seeds can be compared.
    shuffled = epoch_order(len(found.files), 0, 0).tolist()
    rest, apart = found.part(sorted(shuffled[held_out:])), found.part(sorted(shuffled[:held_out]))
    if data.validation_root is not None:
        apart = _listed(data.validation_root, data, workplace)
    skip, seed = workplace.skip_damaged, derived(recipe.seed, "crops")
    training = CaptionedImages(rest, data.size, train=True, flip=data.flip, seed=seed, skip_damaged=skip)
    other = CaptionedImages(apart, data.size, train=False, skip_damaged=skip)
    source = FileImages(training, data.workers, workplace.team.device, training.caption)
    return source, _decoded(other, workplace.team, recipe.batch_size, other.caption)


def _listed(root: str, data: CaptionsData, workplace: Workplace) -> Captioned:
    fields = Fields(data.image_field, data.caption_fields)
    found = list_captioned(Path(root), fields, workplace.cache_dir, skip=workplace.skip_damaged)
    _tell(found.notes, workplace.team)
    return found


def _decoded(files: CroppedImages, team: Team, size: int, caption: Caption | None = None) -> HeldOut:
    """This process's share of images spread over the whole set, as bytes on the CPU, in batches of `size`."""
    chosen = np.linspace(0, len(files) - 1, min(MOST_HELD_OUT, len(files))).astype(np.int64)
    indices = [int(chosen[number]) for part in shares(len(chosen), team, 1) for number in part]
    if not indices:
        return HeldOut(None, [])
    images, shown = zip(*[files.read(index) for index in indices], strict=True)
    _tell_replaced([str(files.file(i)) for i, found in zip(indices, shown, strict=True) if i != found])
    of_shown: Caption | None = None if caption is None else lambda index, epoch: caption(shown[index], epoch)
    source = ImageArray(torch.stack(images).numpy(), files.labels[np.array(shown)], team.device, of_shown)
    return HeldOut(source, list(torch.arange(len(source)).split(size)))


def _tell(notes: Sequence[str], team: Team) -> None:
    for note in notes if team.leads else ():
        print(note, file=sys.stderr)


def _tell_replaced(names: Sequence[str]) -> None:
    if names:
        print(told(names, "damaged image was", "damaged images were", "replaced"), file=sys.stderr)
