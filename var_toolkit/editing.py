"""What is edited, as a person gives it and as a model sees it: image, mask, the square drawn, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from var_toolkit.images import Given, Square, as_output, given_image, middle_square, pixels, square_tensor, upright_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

MAGNIFIED = 4  # how much a small image may be: beyond that a tokenizer reads blur
GROWN = 4  # how many times its side an image may have once room is added: beyond that little of it is left
HALF = 127  # of a mask's levels: what is lighter is drawn anew
SEAM = 2  # pixels of the model over which a pasted part fades in
Box = Sequence[int]  # x, y, width, height
Sides = Sequence[int]  # left, top, right, bottom


@dataclass(frozen=True)
class Edit:
    """An image, what of it is drawn anew, and the square of it that a model draws."""

    image: Image  # RGB
    mask: Image  # L, of the same size: 255 is drawn anew, 0 stays
    square: Square

    def square_tensor(self, side: int) -> Tensor:
        """The square as a model takes it, (3, side, side), float in [0, 1]."""
        return square_tensor(self.image, self.square, side)

    def cells(self, count: int) -> Tensor:
        """The mask as so many cells a side, bool (count, count): a cell is drawn anew if any part of it is."""
        return F.adaptive_max_pool2d(pixels(self._masked()).float(), count)[0] > 0

    def pasted(self, drawn_B3ss: Tensor, output_type: str) -> Any:
        """Drawn squares in [-1, 1] in the given image, as what the caller asked for: pil, np or pt.

        The drawn part fades in over a few pixels inside the mask; outside it no pixel differs.
        """
        fade = self._fade(drawn_B3ss.shape[-1])
        images = [self._with(drawn, fade) for drawn in as_output(drawn_B3ss, "pil")]
        if output_type == "pil":
            return images
        return as_output(torch.stack([pixels(image) for image in images]) / 127.5 - 1, output_type)

    def _with(self, drawn: Image, fade: Image) -> Image:
        from PIL.Image import Resampling

        left, top, length = self.square
        whole = self.image.copy()
        whole.paste(drawn.resize((length, length), Resampling.BICUBIC), (left, top), fade)
        return whole

    def _fade(self, side: int) -> Image:
        """How much shows of what a model of that side has drawn, 0 to 255, as large as the square.

        Nothing outside the mask; inside it more from its border on, and all where it is deepest or `SEAM` pixels deep.
        """
        from PIL.Image import Resampling, fromarray
        from PIL.ImageChops import multiply

        cells = self.cells(min(side, self.square.side))[None].float()
        eroded = [1 - F.max_pool2d(1 - cells, 2 * reach + 1, 1, reach) for reach in range(SEAM + 1)]
        depth = torch.stack(eroded).mean(0)
        deepest = F.max_pool2d(depth, 2 * SEAM + 1, 1, SEAM).clamp(min=1 / (SEAM + 1))
        fade = fromarray((depth / deepest * 255)[0].round().to(torch.uint8).numpy())
        return multiply(fade.resize((self.square.side,) * 2, Resampling.BILINEAR), self._masked())

    def _masked(self) -> Image:
        left, top, length = self.square
        return self.mask.crop((left, top, left + length, top + length))


def prepare(image: Given, mask: Image | Box | None, expand: int | Sides | None, *, side: int, whole: bool) -> Edit:
    """An image and what is drawn anew of it, checked; ValueError in one line if they do not fit.

    The image is one that `var_toolkit.images.given_image` takes. `mask` is an image of the same size, light where it is
    redrawn, or a box in pixels; `expand` says how many pixels are added on each side, to be drawn. A model of images
    `side` by `side` sees the largest square: the one in the middle, or the nearest to it that holds the mask. If
    `whole`, a mask that no square holds is refused.
    """
    if (mask is None) == (expand is None):
        raise ValueError("an edit needs a mask (an image, or a box) or expand (pixels on each side): one of the two")
    image = as_image(image, side)
    if expand is not None:
        image, drawn = _expanded(image, expand)
    else:
        drawn = _box(mask, image) if isinstance(mask, Sequence) else _given_mask(mask, image)
    return Edit(image, drawn, _square_around(drawn, whole=whole))


def as_image(image: Given, side: int) -> Image:
    """An image upright and in RGB; ValueError if it is too small for a model of images `side` by `side`."""
    upright = given_image(image)
    least = -(-side // MAGNIFIED)
    if min(upright.size) < least:
        raise ValueError(
            f"the image is too small, {_by(upright.size)} pixels; the model draws {side} x {side} and takes images "
            f"of {least} x {least} or more: enlarge it first"
        )
    return upright


def _require_pil(image: Any, what: str) -> Any:
    from PIL.Image import Image as PILImage

    if not isinstance(image, PILImage):
        raise ValueError(f"{what} is a {type(image).__name__}; it must be an image of PIL (PIL.Image.fromarray)")
    return image


def _whole(numbers: Any, what: str) -> list[int]:
    """Whole numbers; ValueError by name for anything else."""
    try:
        return [index(number) for number in numbers]
    except TypeError:
        raise ValueError(f"{what} is {numbers!r}; it must be whole numbers of pixels") from None


def _box(box: Box, image: Image) -> Image:
    from PIL.Image import new

    if len(box) != 4:
        raise ValueError(f"mask is {box!r}; a box has four numbers: x, y, width and height in pixels")
    x, y, w, h = _whole(box, "mask")
    if x < 0 or y < 0 or w < 1 or h < 1 or x + w > image.width or y + h > image.height:
        raise ValueError(
            f"the mask x {x}, y {y}, width {w}, height {h} is not within the image, {_by(image.size)} pixels"
        )
    mask = new("L", image.size)
    mask.paste(255, (x, y, x + w, y + h))
    return mask


def _given_mask(mask: Any, image: Image) -> Image:
    """A mask that someone has made, light where the image is drawn anew; what is transparent stays."""
    upright = upright_rgb(_require_pil(mask, "the mask"), "black", "the mask")
    if upright.size != image.size:
        raise ValueError(
            f"the mask is {_by(upright.size)} pixels, the image {_by(image.size)}; "
            "give one of the image's size, or a box: x, y, width and height"
        )
    grey = upright.convert("L")
    lightest = max(level for level, count in enumerate(grey.histogram()) if count)
    if 0 < lightest <= HALF:
        raise ValueError(f"the mask is dark, at most {lightest} of 255; what is drawn anew must be above {HALF}")
    return grey.point(lambda level: 255 * (level > HALF))


def _expanded(image: Image, expand: int | Sides) -> tuple[Image, Image]:
    """The image with more room around it, filled with what is nearest; the room is what is drawn."""
    from PIL.Image import fromarray, new

    left, top, right, bottom = _sides(expand)
    width, height = image.width + left + right, image.height + top + bottom
    if width != height:
        raise ValueError(
            f"expand gives {width} x {height} pixels, and models draw squares; add {abs(width - height)} more "
            f"{'above or below' if width > height else 'left or right'}: expand is left, top, right and bottom"
        )
    if width > GROWN * max(image.size):
        raise ValueError(
            f"expand gives {width} x {height} pixels, of which the image has {_by(image.size)}; "
            f"it may grow to {GROWN} times its longer side, {GROWN * max(image.size)} pixels"
        )
    grown = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge")
    mask = new("L", (width, height), 255)
    mask.paste(0, (left, top, left + image.width, top + image.height))
    return fromarray(grown), mask


def _sides(expand: int | Sides) -> tuple[int, int, int, int]:
    numbers = _whole(expand if isinstance(expand, Sequence) else [expand] * 4, "expand")
    if len(numbers) != 4 or min(numbers) < 0 or max(numbers) == 0:
        raise ValueError(f"expand is {expand}; give pixels above 0, or four numbers from 0: left, top, right, bottom")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _square_around(mask: Image, *, whole: bool) -> Square:
    """The largest square of an image that holds what is drawn anew, as near the middle as that allows."""
    middle, drawn = middle_square(*mask.size), mask.getbbox()
    if drawn is None:
        return middle
    left, top, right, bottom = drawn
    if whole and max(right - left, bottom - top) > middle.side:
        raise ValueError(
            f"the mask is larger than the square that is drawn, {middle.side} x {middle.side} of {_by(mask.size)} "
            "pixels; mask less, cut the image square first, or do without keep_pixels"
        )
    side = middle.side
    return Square(_moved(middle.left, left, right, side), _moved(middle.top, top, bottom, side), side)


def _moved(start: int, first: int, end: int, length: int) -> int:
    """Where a window of a length begins that holds first .. end - 1 if it can, as near `start` as possible."""
    return start if end - first > length else min(max(start, end - length), first)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
