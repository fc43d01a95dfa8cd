"""Images as files hold them, and as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = (
    "AVIF",
    "BMP",
    "GIF",
    "JPEG",
    "PNG",
    "PPM",
    "TIFF",
    "WEBP",
)  # that are read; Pillow would run a program for EPS


def open_image(path: Path) -> Image:
    """A PIL image from a file, of an animation the first one; ValueError in one line if it is no image."""
    from PIL import UnidentifiedImageError
    from PIL.Image import DecompressionBombError
    from PIL.Image import open as opened

    try:
        image = opened(path, formats=KINDS)
        image.load()
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image that can be read; use PNG, JPEG, WebP, GIF or TIFF") from None
    except (SyntaxError, DecompressionBombError, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise ValueError(f"{path} is a damaged image: {error}") from None
    return image


class Square(NamedTuple):
    """A square part of an image, in pixels."""

    left: int
    top: int
    side: int


def image_tensor(image: Image, side: int) -> Tensor:
    """A PIL image, upright, in RGB, cut to the square in its middle, scaled: (3, side, side), float in [0, 1]."""
    upright = upright_rgb(image)
    return square_tensor(upright, middle_square(*upright.size), side)


def upright_rgb(image: Image, behind: str = "white", what: str = "the image") -> Image:
    """A PIL image as people see it: turned as its camera says, in RGB, on a colour where it is transparent.

    ValueError for floating-point pixels, of which nobody says what is black and what is white.
    """
    from PIL import ImageOps
    from PIL.Image import alpha_composite, new

    if image.mode == "F":
        raise ValueError(f"{what} has floating-point pixels; save it with 8 or 16 bits for a colour")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits, which Pillow would clip, not scale
        upright = upright.convert("I").point(lambda level: level / 257).convert("L")
    if upright.has_transparency_data:
        upright = alpha_composite(new("RGBA", upright.size, behind), upright.convert("RGBA"))
    return upright.convert("RGB")


def middle_square(width: int, height: int) -> Square:
    """The largest square in the middle of an image."""
    side = min(width, height)
    return Square((width - side) // 2, (height - side) // 2, side)


def square_tensor(image: Image, square: Square, side: int) -> Tensor:
    """A square of an RGB image, scaled, (3, side, side), float in [0, 1]."""
    from PIL.Image import Resampling

    left, top, length = square
    scaled = image.resize((side, side), Resampling.LANCZOS, box=(left, top, left + length, top + length))
    return pixels(scaled) / 255


def pixels(image: Image) -> Tensor:
    """The bytes of a PIL image, uint8 (C, h, w)."""
    found = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return found.view(image.height, image.width, -1).permute(2, 0, 1)


def to_uint8(images: Tensor) -> Tensor:
    """Images of any shape, float in [0, 1], as the bytes that a file holds: uint8, rounded to the nearest."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def as_output(images_B3hw: Tensor, output_type: str) -> Any:
    """Images in [-1, 1] as what the caller asked for."""
    unit = (images_B3hw + 1) / 2
    if output_type == "pt":
        return unit
    last = unit.permute(0, 2, 3, 1).contiguous()
    if output_type == "np":
        return last.numpy()
    from PIL.Image import fromarray

    return [fromarray(image) for image in to_uint8(last).numpy()]
