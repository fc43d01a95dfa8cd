"""The pyramid of token maps: sizes, offsets, level ids and masks. It imports no other part of the package.

Letters: L tokens of the whole pyramid, K scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Published schedules by image side in pixels (VAR, arXiv 2404.02905; 1024 as in HMAR, arXiv 2506.04421).
SCHEDULES: dict[str, tuple[int, ...]] = {
    "256": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    "512": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    "1024": (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}


@dataclass(frozen=True)
class Scales:
    """A schedule of square token maps, coarse to fine.

    `patch_nums` are the sides of the maps: strictly increasing positive integers. ValueError otherwise.
    """

    patch_nums: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_nums", tuple(self.patch_nums))
        sides = self.patch_nums
        if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"patch_nums is {list(sides)}; it must be a list of positive integers, such as 1 2 3 4")
        if any(fine <= coarse for coarse, fine in pairwise(sides)):
            raise ValueError(f"patch_nums is {list(sides)}; it must be strictly increasing")

    @classmethod
    def named(cls, name: str) -> Scales:
        """The published schedule for images of 256, 512 or 1024 px. ValueError for another name."""
        if name not in SCHEDULES:
            raise ValueError(f"schedule is {name!r}; it must be one of {', '.join(SCHEDULES)}")
        return cls(SCHEDULES[name])

    def __len__(self) -> int:
        return len(self.patch_nums)

    def __str__(self) -> str:
        return ",".join(map(str, self.patch_nums))

    def to_json(self) -> list[int]:
        """The sides of the maps."""
        return list(self.patch_nums)

    @classmethod
    def from_json(cls, given: object, *, where: str) -> Scales:
        """The schedule that `to_json` wrote. ValueError with `where` for anything else."""
        if not isinstance(given, list | tuple):
            raise ValueError(f"{where} is {given!r}; it must be a list of sides of maps, such as [1, 2, 3, 4]")
        try:
            return cls(tuple(given))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens per scale, (K)."""
        return tuple(side * side for side in self.patch_nums)

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
        """Side of the last map, which is the side of the latent."""
        return self.patch_nums[-1]

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


Schedule = Scales
