"""What is edited, as a person gives it and as a model sees it: picture, mask, the square that is drawn, the way back.

Letters: B pictures, H and W of the given picture with what it grows by, s side of the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.pictures import Square, as_output, middle_square, pixels, square_tensor, upright_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

MAGNIFIED = 4  # how much a small picture may be: beyond that a tokenizer reads blur
SEAM = 2  # pixels of the model over which a pasted part fades in
Box = Sequence[int]  # x, y, width, height
Sides = Sequence[int]  # left, top, right, bottom


@dataclass(frozen=True)
class Edit:
    """A picture, what of it is drawn anew, and the square of it that a model draws."""

    image: Image  # RGB
    mask: Tensor  # bool (H, W): true is drawn anew
    square: Square

    def picture(self, s: int) -> Tensor:
        """The square as a model of side s takes it, (3, s, s), float in [0, 1]."""
        return square_tensor(self.image, self.square, s)

    def cells(self, count: int) -> Tensor:
        """The mask as so many cells a side, bool (count, count): a cell is drawn anew if any part of it is."""
        return F.adaptive_max_pool2d(self.mask[None, *self._place].float(), count)[0] > 0

    def pasted(self, drawn_B3ss: Tensor) -> Tensor:
        """Drawn squares, float in [0, 1], in the given picture, (B, 3, H, W): outside the mask no pixel differs.

        The drawn part fades in over a few pixels inside the mask.
        """
        length, s = self.square.side, drawn_B3ss.shape[-1]
        drawn = F.interpolate(drawn_B3ss, size=(length, length), mode="bicubic", antialias=True).clamp(0, 1)
        weight = _depth(self.mask, max(1, SEAM * length // s))[self._place]
        whole = (pixels(self.image) / 255).repeat(len(drawn), 1, 1, 1)
        before = whole[..., *self._place]
        whole[..., *self._place] = torch.where(weight > 0, before + weight * (drawn - before), before)
        return whole

    @property
    def _place(self) -> tuple[slice, slice]:
        left, top, length = self.square
        return slice(top, top + length), slice(left, left + length)


def prepare(
    image: Image | Tensor, mask: Image | Box | None, expand: int | Sides | None, *, side: int, whole: bool
) -> Edit:
    """A picture and what is drawn anew of it, checked; ValueError in one line if they do not fit.

    The picture is of PIL, or float (3, h, w) in [0, 1]. `mask` is a picture of the same size, white where it is drawn
    anew, or a box in pixels; `expand` says how many pixels are added on each side, to be drawn. A model of pictures
    `side` by `side` sees the largest square: the one in the middle, or the nearest to it that holds the mask. If
    `whole`, a mask that no square holds is refused.
    """
    if (mask is None) == (expand is None):
        raise ValueError("an edit needs a mask (a picture, or a box) or expand (pixels on each side): one of the two")
    picture = as_picture(image, side)
    if expand is not None:
        picture, mask_HW = _expanded(picture, expand)
    else:
        mask_HW = _box(mask, picture) if isinstance(mask, Sequence) else _drawn_mask(mask, picture)
    return Edit(picture, mask_HW, _square_around(mask_HW, whole=whole))


def as_picture(image: Image | Tensor, side: int) -> Image:
    """A picture upright and in RGB; ValueError if it is too small for a model of pictures `side` by `side`."""
    upright = _of_tensor(image) if isinstance(image, Tensor) else upright_rgb(image)
    least = -(-side // MAGNIFIED)
    if min(upright.size) < least:
        raise ValueError(
            f"the picture is too small, {_by(upright.size)} pixels; the model draws {side} x {side} and takes pictures "
            f"of {least} x {least} or more"
        )
    return upright


def _of_tensor(picture: Tensor) -> Any:
    if picture.ndim != 3 or picture.shape[0] != 3:
        raise ValueError(f"the picture has shape {tuple(picture.shape)}; a tensor must be (3, h, w), from 0 to 1")
    return as_output(picture.detach().cpu()[None] * 2 - 1, "pil")[0]


def _box(box: Box, picture: Image) -> Tensor:
    if len(box) != 4:
        raise ValueError(f"mask is {list(box)}; a box has four numbers: x, y, width and height in pixels")
    x, y, w, h = (int(number) for number in box)
    if x < 0 or y < 0 or w < 1 or h < 1 or x + w > picture.width or y + h > picture.height:
        raise ValueError(
            f"the mask x {x}, y {y}, width {w}, height {h} is not within the picture, {_by(picture.size)} pixels"
        )
    mask_HW = torch.zeros(picture.height, picture.width, dtype=torch.bool)
    mask_HW[y : y + h, x : x + w] = True
    return mask_HW


def _drawn_mask(mask: Any, picture: Image) -> Tensor:
    """A mask that someone has drawn, light where the picture is drawn anew."""
    upright = upright_rgb(mask)
    if upright.size != picture.size:
        raise ValueError(
            f"the mask is {_by(upright.size)} pixels, the picture {_by(picture.size)}; "
            "give one of the picture's size, or a box: x, y, width and height"
        )
    return pixels(upright.convert("L"))[0] > 127


def _expanded(picture: Image, expand: int | Sides) -> tuple[Image, Tensor]:
    """The picture with more room around it, filled with what is nearest; the room is what is drawn."""
    left, top, right, bottom = _sides(expand)
    width, height = picture.width + left + right, picture.height + top + bottom
    if width != height:
        raise ValueError(
            f"expand gives {width} x {height} pixels, and models draw squares; add {abs(width - height)} more "
            f"{'above or below' if width > height else 'left or right'}: expand is left, top, right and bottom"
        )
    grown = F.pad(pixels(picture)[None].float(), (left, right, top, bottom), mode="replicate")
    mask_HW = torch.ones(height, width, dtype=torch.bool)
    mask_HW[top : top + picture.height, left : left + picture.width] = False
    return as_output(grown / 127.5 - 1, "pil")[0], mask_HW


def _sides(expand: int | Sides) -> tuple[int, int, int, int]:
    numbers = [int(number) for number in expand] if isinstance(expand, Sequence) else [int(expand)] * 4
    if len(numbers) != 4 or min(numbers) < 0 or max(numbers) == 0:
        raise ValueError(
            f"expand is {numbers}; it must be one number above 0, or four from 0: left, top, right, bottom"
        )
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _square_around(mask_HW: Tensor, *, whole: bool) -> Square:
    """The largest square of a picture that holds what is drawn anew, as near the middle as that allows."""
    height, width = mask_HW.shape
    middle = middle_square(width, height)
    rows, columns = (mask_HW.any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    if not rows:
        return middle
    if whole and max(rows[-1] - rows[0], columns[-1] - columns[0]) >= middle.side:
        raise ValueError(
            f"the mask is larger than the square that is drawn, {middle.side} x {middle.side} of {width} x {height} "
            "pixels; mask less, cut the picture square first, or do without keep_pixels"
        )
    return Square(
        _moved(middle.left, columns[0], columns[-1] + 1, middle.side),
        _moved(middle.top, rows[0], rows[-1] + 1, middle.side),
        middle.side,
    )


def _moved(start: int, first: int, end: int, length: int) -> int:
    """Where a window of a length begins that holds first .. end - 1 if it can, as near `start` as possible."""
    return start if end - first > length else min(max(start, end - length), first)


def _depth(mask_HW: Tensor, radius: int) -> Tensor:
    """How deep in the mask a pixel lies, (H, W): 0 outside, 1 from `radius` pixels on."""
    outside = 1 - mask_HW[None].float()
    eroded = [1 - F.max_pool2d(outside, 2 * reach + 1, 1, reach)[0] for reach in range(radius + 1)]
    return torch.stack(eroded).mean(0)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
