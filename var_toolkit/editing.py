"""Inputs of an edit, checked: image, mask, the square that the model draws, and pasting the result back."""

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

MAGNIFIED = 4  # the largest factor by which a small image is enlarged; beyond it the tokenizer's input is blurred
GROWN = 4  # the largest factor by which `expand` may enlarge the longer side; beyond it little of the image is left
HALF = 127  # mask levels above this are redrawn
SEAM = 2  # pixels of the model's image over which a pasted part fades in
Box = Sequence[int]  # x, y, width, height
Sides = Sequence[int]  # left, top, right, bottom


def require_places(tokenizer: Any) -> None:
    """ValueError for a tokenizer whose tokens are each of the whole image, so that a part cannot be redrawn."""
    if not getattr(tokenizer, "spatial", True):
        raise ValueError(
            f"each token of {type(tokenizer).__name__} is of the whole image, so no part of it can be redrawn; edit "
            "with a model of token maps, such as VAR, LlamaGen or MAR"
        )


@dataclass(frozen=True)
class Edit:
    """An image, the mask of what is redrawn, and the square of it that the model draws."""

    image: Image  # RGB
    mask: Image  # mode L, of the same size: 255 is redrawn, 0 is preserved
    square: Square

    def square_tensor(self, side: int) -> Tensor:
        """The square as model input, (3, side, side), float in [0, 1]."""
        return square_tensor(self.image, self.square, side)

    def cells(self, count: int) -> Tensor:
        """The mask on a grid, bool (count, count): a cell is redrawn if any pixel of it is."""
        return F.adaptive_max_pool2d(pixels(self._masked()).float(), count)[0] > 0

    def pasted(self, drawn_B3ss: Tensor, output_type: str) -> Any:
        """Drawn squares in [-1, 1] pasted into the given image, in the output type pil, np or pt.

        The drawn part fades in over a few pixels inside the mask; no pixel outside it changes.
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
        """The opacity of the drawn square, 0 to 255, as large as the square, for a model of images of that side.

        It is 0 outside the mask, increases from the mask's border, and is 255 from `SEAM` pixels inside on, or where
        the mask is deepest.
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


@dataclass(frozen=True)
class Canvas:
    """An image at the top left of a white square: how a model of squares edits an image of any aspect ratio."""

    image: Image  # RGB

    @property
    def side(self) -> int:
        """The side of the square in pixels of the image."""
        return max(self.image.size)

    def tensor(self, side: int) -> Tensor:
        """The square as model input, (3, side, side), float in [0, 1]."""
        from PIL.Image import new

        square = new("RGB", (self.side, self.side), "white")
        square.paste(self.image, (0, 0))
        return square_tensor(square, Square(0, 0, self.side), side)

    def cut(self, drawn_B3ss: Tensor, output_type: str) -> Any:
        """Drawn squares in [-1, 1] as images of the size of the given one, in the output type pil, np or pt."""
        from PIL.Image import Resampling

        width, height = self.image.size
        images = [
            drawn.resize((self.side, self.side), Resampling.LANCZOS).crop((0, 0, width, height))
            for drawn in as_output(drawn_B3ss, "pil")
        ]
        if output_type == "pil":
            return images
        return as_output(torch.stack([pixels(image) for image in images]) / 127.5 - 1, output_type)


def on_canvas(image: Given, side: int) -> Canvas:
    """An image for a model of images `side` by `side`; ValueError if it is too small."""
    return Canvas(as_image(image, side))


def prepare(image: Given, mask: Image | Box | None, expand: int | Sides | None, *, side: int, whole: bool) -> Edit:
    """An image and the mask of what is redrawn, checked; ValueError in one line if they do not fit.

    The image is one that `var_toolkit.images.given_image` accepts. `mask` is an image of the same size, light where it
    is redrawn, or a box in pixels; `expand` is how many pixels are added on each side, to be drawn. A model of images
    `side` by `side` gets the largest square: the one in the middle, or the nearest to it that contains the mask. With
    `whole`, a mask that no such square contains is an error.
    """
    if (mask is None) == (expand is None):
        raise ValueError(
            "an edit needs either a mask (an image, or a box) or expand (pixels on each side); give one of the two"
        )
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
            f"the image is too small, {_by(upright.size)} pixels; the model draws {side} x {side} and accepts images "
            f"of {least} x {least} or more: enlarge it first"
        )
    return upright


def _require_pil(image: Any, what: str) -> Any:
    from PIL.Image import Image as PILImage

    if not isinstance(image, PILImage):
        raise ValueError(f"{what} is a {type(image).__name__}; it must be a PIL image (PIL.Image.fromarray)")
    return image


def _whole(numbers: Any, what: str) -> list[int]:
    """Whole numbers; ValueError by name for anything else."""
    try:
        return [index(number) for number in numbers]
    except TypeError:
        raise ValueError(f"{what} is {numbers!r}; it must be integers (pixels)") from None


def _box(box: Box, image: Image) -> Image:
    from PIL.Image import new

    if len(box) != 4:
        raise ValueError(f"mask is {box!r}; a box must be four numbers: x, y, width and height in pixels")
    x, y, w, h = _whole(box, "mask")
    if x < 0 or y < 0 or w < 1 or h < 1 or x + w > image.width or y + h > image.height:
        raise ValueError(
            f"the mask x {x}, y {y}, width {w}, height {h} is not within the image, {_by(image.size)} pixels"
        )
    mask = new("L", image.size)
    mask.paste(255, (x, y, x + w, y + h))
    return mask


def _given_mask(mask: Any, image: Image) -> Image:
    """A mask image of the user, light where the image is redrawn; transparent pixels are preserved."""
    upright = upright_rgb(_require_pil(mask, "the mask"), "black", "the mask")
    if upright.size != image.size:
        raise ValueError(
            f"the mask is {_by(upright.size)} pixels, the image {_by(image.size)}; "
            "give a mask of the image's size, or a box: x, y, width and height"
        )
    grey = upright.convert("L")
    lightest = max(level for level, count in enumerate(grey.histogram()) if count)
    if 0 < lightest <= HALF:
        raise ValueError(f"the mask is dark, at most {lightest} of 255; pixels to redraw must be above {HALF}")
    return grey.point(lambda level: 255 * (level > HALF))


def _expanded(image: Image, expand: int | Sides) -> tuple[Image, Image]:
    """The image with a border, filled with the nearest pixels, and a mask of that border, which is drawn."""
    from PIL.Image import fromarray, new

    left, top, right, bottom = _sides(expand)
    width, height = image.width + left + right, image.height + top + bottom
    if width != height:
        raise ValueError(
            f"expand gives {width} x {height} pixels, but models draw squares; add {abs(width - height)} more "
            f"{'above or below' if width > height else 'left or right'} (expand is left, top, right, bottom)"
        )
    if width > GROWN * max(image.size):
        raise ValueError(
            f"expand gives {width} x {height} pixels from an image of {_by(image.size)}; "
            f"the largest side is {GROWN} times the image's longer side, {GROWN * max(image.size)} pixels"
        )
    grown = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge")
    mask = new("L", (width, height), 255)
    mask.paste(0, (left, top, left + image.width, top + image.height))
    return fromarray(grown), mask


def _sides(expand: int | Sides) -> tuple[int, int, int, int]:
    numbers = _whole(expand if isinstance(expand, Sequence) else [expand] * 4, "expand")
    if len(numbers) != 4 or min(numbers) < 0 or max(numbers) == 0:
        raise ValueError(f"expand is {expand}; give a number above 0, or four numbers from 0: left, top, right, bottom")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _square_around(mask: Image, *, whole: bool) -> Square:
    """The largest square of an image that contains the mask, as near the middle as possible."""
    middle, drawn = middle_square(*mask.size), mask.getbbox()
    if drawn is None:
        return middle
    left, top, right, bottom = drawn
    if whole and max(right - left, bottom - top) > middle.side:
        raise ValueError(
            f"the mask is larger than the square that is drawn, {middle.side} x {middle.side} of {_by(mask.size)} "
            "pixels; use a smaller mask, crop the image to a square, or remove keep_pixels"
        )
    side = middle.side
    return Square(_moved(middle.left, left, right, side), _moved(middle.top, top, bottom, side), side)


def _moved(start: int, first: int, end: int, length: int) -> int:
    """The start, as near to `start` as possible, of a window that contains first .. end - 1 if it is long enough."""
    return start if end - first > length else min(max(start, end - length), first)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
