"""The data section of a recipe -> pictures to train on, and pictures held out."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from var_toolkit.training.batches import Batch, PictureArray, Source, to_unit_range
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.processes import Team
from var_toolkit.training.recipe import FoldersData, StillLifesData


class FolderPictures:
    """Pictures in class folders, decoded and cropped by worker processes."""

    def __init__(self, data: FoldersData, root: str, device: torch.device, *, train: bool) -> None:
        from var_toolkit.data.folders import ClassFolders

        self.folders = ClassFolders(Path(root), data.size, train)
        self.workers, self.device = data.workers, device

    def __len__(self) -> int:
        return len(self.folders)

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        self.folders.set_epoch(epoch)
        loader = torch.utils.data.DataLoader(
            self.folders,
            batch_sampler=[numbers.tolist() for numbers in rows],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        for pictures, labels in loader:
            moved = pictures.to(self.device, non_blocking=True)
            yield Batch(labels.to(self.device, non_blocking=True), pictures=to_unit_range(moved))


def training_pictures(data: StillLifesData | FoldersData, workplace: Workplace) -> Source:
    device = workplace.team.device
    if isinstance(data, FoldersData):
        return FolderPictures(data, data.root, device, train=True)
    return PictureArray(*still_lifes(workplace, data.count, "train"), device)


def held_out_batches(data: StillLifesData | FoldersData, workplace: Workplace, size: int) -> list[Batch]:
    """This process's share of the held-out pictures, in batches; empty if the recipe has none."""
    source = _held_out(data, workplace)
    if source is None:
        return []
    return list(source.batches(shares(len(source), workplace.team, size), 0))


def shares(count: int, team: Team, size: int) -> list[Tensor]:
    """Which of `count` pictures this process looks at: equal shares, so that means over processes can be averaged."""
    mine = torch.arange(count // team.size * team.size)[team.rank :: team.size]
    return [part for part in mine.split(size) if len(part)]


def still_lifes(workplace: Workplace, count: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    from var_toolkit.data.still_lifes import cached

    return cached(workplace.cache_dir, count, split, progress=workplace.team.leads)


HELD_OUT_OF_FOLDERS = 2_048  # decoded pictures stay in memory


def _held_out(data: StillLifesData | FoldersData, workplace: Workplace) -> Source | None:
    device = workplace.team.device
    if isinstance(data, StillLifesData):
        if not data.validation_count:
            return None
        return PictureArray(*still_lifes(workplace, data.validation_count, "validation"), device)
    if data.validation_root is None:
        return None
    folders = FolderPictures(data, data.validation_root, device, train=False)
    chosen = np.linspace(0, len(folders) - 1, min(HELD_OUT_OF_FOLDERS, len(folders))).astype(np.int64)
    items = [folders.folders[int(number)] for number in chosen]
    pictures = torch.stack([picture for picture, _ in items]).numpy()
    return PictureArray(pictures, np.array([label for _, label in items]), device)
