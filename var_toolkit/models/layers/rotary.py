"""RoPE, mostly in 2D: half of a head's channels encode the row, half the column.

Letters: R rows, H heads, L tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines that rotate pairs of neighbouring channels, each (L, D / 2), float32."""

    cos: Tensor
    sin: Tensor

    def at(self, kept_RL: Tensor) -> Rotation:
        """The rotation of the tokens at some positions, other ones in each row: (R, 1, L, D / 2) each."""
        return Rotation(self.cos[kept_RL].unsqueeze(1), self.sin[kept_RL].unsqueeze(1))

    def __call__(self, x_RHLD: Tensor) -> Tensor:
        """Apply RoPE to queries or keys, in their own dtype."""
        pairs = x_RHLD.float().unflatten(-1, (-1, 2))
        if torch.compiler.is_compiling():  # the compiler fuses these, but not complex numbers
            even, odd = pairs.unbind(-1)
            rotated = torch.stack((even * self.cos - odd * self.sin, odd * self.cos + even * self.sin), dim=-1)
        else:
            rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(self.cos, self.sin))
        return rotated.flatten(-2).to(x_RHLD.dtype)


def rotation_on_grids(
    sides: Iterable[int], grid: int, head_dim: int, device: torch.device, theta: float = 1e4
) -> Rotation:
    """RoPE of concatenated square maps, each stretched to `grid` x `grid`: equal locations, equal angles."""
    lines = [torch.arange(side, dtype=torch.float32, device=device) / side * grid for side in sides]
    return _rotation([(line, line) for line in lines], head_dim, theta)


def rotation_on_places(
    maps: Iterable[tuple[int, int]], grid: tuple[int, int], head_dim: int, device: torch.device, theta: float = 1e4
) -> Rotation:
    """RoPE of concatenated maps (height, width), each token at the nearest row and column of `grid` (height, width)."""
    lines = [
        tuple(
            (torch.arange(side, device=device) * (whole / side)).round() for side, whole in zip(size, grid, strict=True)
        )
        for size in maps
    ]
    return _rotation(lines, head_dim, theta)


def rotation_beyond(grid: tuple[int, int], head_dim: int, device: torch.device, theta: float = 1e4) -> Rotation:
    """RoPE of one more map as large as `grid` (height, width), whose rows and columns are counted on from its last."""
    lines = [torch.arange(side, 2 * side, dtype=torch.float32, device=device) for side in grid]
    return _rotation([lines], head_dim, theta)


def rotation_on_span(sides: Iterable[int], span: float, head_dim: int, device: torch.device, theta: float) -> Rotation:
    """RoPE of concatenated square maps, whose first row is at 0 and the last at `span`; columns come before rows."""
    lines = [torch.arange(side, dtype=torch.float32, device=device) / max(side - 1, 1) * span for side in sides]
    by_rows = _rotation([(line, line) for line in lines], head_dim, theta)
    return Rotation(*(table.roll(table.shape[1] // 2, dims=1) for table in by_rows))


def rotation_on_line(count: int, head_dim: int, device: torch.device, theta: float = 1e4) -> Rotation:
    """RoPE of a sequence of `count` tokens, in one dimension."""
    numbers = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    angles = torch.arange(count, device=device).unsqueeze(1) * theta ** -(numbers / head_dim)
    return Rotation(angles.cos(), angles.sin())


def _rotation(lines: Iterable[Sequence[Tensor]], head_dim: int, theta: float) -> Rotation:
    """The rotation of maps from the positions of their rows and of their columns."""
    angles = []
    for rows, columns in lines:
        numbers = torch.arange(0, head_dim // 2, 2, dtype=torch.float32, device=rows.device)
        frequencies = theta ** -(numbers / (head_dim // 2))
        down, across = torch.meshgrid(rows, columns, indexing="ij")
        angles.append(torch.cat([axis.reshape(-1, 1) * frequencies for axis in (down, across)], dim=1))
    whole = torch.cat(angles)
    return Rotation(whole.cos(), whole.sin())
