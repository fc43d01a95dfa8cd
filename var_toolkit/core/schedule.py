"""The pyramid of token maps: sizes, offsets, level ids and masks. It imports no other part of the package.

Letters: L tokens of the whole pyramid, K scales.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

# Published schedules by image side in pixels (VAR, arXiv 2404.02905; 1024 as in HMAR, arXiv 2506.04421).
SCHEDULES: dict[str, tuple[int, ...]] = {
    "256": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    "512": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    "1024": (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}


@dataclass(frozen=True)
class Schedule:
    """A schedule of token maps, drawn in this order.

    `patch_nums` holds one entry per map: the side of a square map, or (height, width). Sides may repeat. A pair of
    equal numbers is kept as one side, so that equal schedules compare equal. ValueError for anything else.
    """

    patch_nums: tuple[Any, ...]

    def __post_init__(self) -> None:
        entries = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in self.patch_nums)
        if not entries or not all(map(_is_map, entries)):
            raise ValueError(
                f"patch_nums is {list(entries)}; it must be a list of positive integers, such as 1 2 3 4, "
                "or of pairs (height, width)"
            )
        kept = tuple(entry[0] if isinstance(entry, tuple) and entry[0] == entry[1] else entry for entry in entries)
        object.__setattr__(self, "patch_nums", kept)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """The schedule written as `1,2,4` or, with maps of height x width, `1,2,4x6`. ValueError otherwise."""
        entries = [re.fullmatch(r"([0-9]+)(?:x([0-9]+))?", entry.strip()) for entry in text.split(",")]
        numbers = [(int(found[1]), int(found[2] or found[1])) for found in entries if found]
        if len(numbers) < len(entries) or not all(map(_is_map, numbers)):
            raise ValueError(
                f"schedule is {text!r}; it must be sides of maps, such as 1,2,4, or 1,2,4x6 (height x width)"
            )
        return cls(tuple(numbers))

    @classmethod
    def named(cls, name: str) -> Schedule:
        """The published schedule for images of 256, 512 or 1024 px. ValueError for another name."""
        if name not in SCHEDULES:
            raise ValueError(f"schedule is {name!r}; it must be one of {', '.join(SCHEDULES)}")
        return cls(SCHEDULES[name])

    def __len__(self) -> int:
        return len(self.patch_nums)

    def __str__(self) -> str:
        return ",".join(f"{e[0]}x{e[1]}" if isinstance(e, tuple) else str(e) for e in self.patch_nums)

    def to_json(self) -> list[int | list[int]]:
        """One entry per map: its side, or [height, width]."""
        return [list(entry) if isinstance(entry, tuple) else entry for entry in self.patch_nums]

    @classmethod
    def from_json(cls, given: object, *, where: str) -> Schedule:
        """The schedule that `to_json` wrote. ValueError with `where` for anything else."""
        if not isinstance(given, list | tuple):
            raise ValueError(f"{where} is {given!r}; it must be a list of sides of maps, such as [1, 2, 3, 4]")
        try:
            return cls(tuple(given))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of every map, (K)."""
        return tuple(entry if isinstance(entry, tuple) else (entry, entry) for entry in self.patch_nums)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens per scale, (K)."""
        return tuple(height * width for height, width in self.maps)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Start of each scale in the packed sequence, and the end of the last: (K + 1)."""
        return (0, *accumulate(self.lengths))

    @property
    def total(self) -> int:
        """Tokens of the whole pyramid, L."""
        return self.offsets[-1]

    @property
    def finest(self) -> int:
        """Side of the last map, which is the side of the latent. ValueError where that map is not square."""
        height, width = self.maps[-1]
        if height != width:
            raise ValueError(f"schedule is {self}; its last map must be square here, and it is {height}x{width}")
        return height

    def image_size(self, downsample: int) -> tuple[int, int]:
        """Height and width of the images, in pixels, when a token of the last map covers `downsample` of them."""
        height, width = self.maps[-1]
        return height * downsample, width * downsample

    def progress(self, scale: int) -> float:
        """Position of a scale from 0 (first) to 1 (last), used by guidance ramps and the choice of phis."""
        return scale / (len(self) - 1) if len(self) > 1 else 1.0

    def split(self, packed: torch.Tensor) -> list[torch.Tensor]:
        """(B, L, ...) -> K tensors (B, n_k, ...)."""
        return list(packed.split(self.lengths, dim=1))

    def level_ids(self, device: torch.device | None = None) -> torch.Tensor:
        """The scale each token belongs to, int64 (L), computed on the device."""
        import torch

        return torch.cat([torch.full((length,), k, device=device) for k, length in enumerate(self.lengths)])

    def block_causal_mask(
        self, first: int = 0, last: int | None = None, device: torch.device | None = None
    ) -> torch.Tensor:
        """Attention mask when scales first .. last-1 are computed in one pass, bool (queries, keys).

        Keys are the tokens of scales 0 .. last-1. A token attends to its own scale and every coarser one.
        """
        last = len(self) if last is None else last
        levels = self.level_ids(device)[: self.offsets[last]]
        return levels[self.offsets[first] :, None] >= levels[None, :]

    def block_diagonal_mask(self) -> torch.Tensor:
        """Attention mask of Markov next-scale prediction, bool (L, L): a token attends only to its own scale."""
        levels = self.level_ids()
        return levels[:, None] == levels[None, :]


def increasing_sides(sides: Iterable[int]) -> tuple[int, ...]:
    """The sides of square maps that grow from each to the next, which most networks need. ValueError otherwise."""
    schedule = Schedule(tuple(sides))
    if not all(isinstance(side, int) for side in schedule.patch_nums):
        raise ValueError(f"patch_nums is {list(schedule.patch_nums)}; it must be a list of sides of square maps")
    if any(fine <= coarse for coarse, fine in pairwise(schedule.patch_nums)):
        raise ValueError(f"patch_nums is {list(schedule.patch_nums)}; it must be strictly increasing")
    return schedule.patch_nums


def _is_map(entry: object) -> bool:
    """Whether this is a side of a square map or (height, width)."""
    numbers = entry if isinstance(entry, tuple) else (entry, entry)
    return len(numbers) == 2 and all(type(number) is int and number > 0 for number in numbers)
