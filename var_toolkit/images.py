"""Image files, and images as tensors: the only module that opens an image file.

Training, evaluation and editing read the same kinds of files in the same way (`read_image`): upright, RGB, 8 bits.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

# The formats that are read. By default Pillow would recognise others by their content, and run Ghostscript for EPS.
KINDS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
ENDINGS = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
Given = Any  # a PIL image, a path, an array or a tensor: see `given_image`
ORIENTATION = 0x0112  # of EXIF
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
_FILTERS = threading.Lock()  # `warnings.catch_warnings` changes the filters of all threads


class ImageFileError(ValueError):
    """An image file cannot be read; the message is one line that names it.

    DataLoader wraps the message of an error in a worker process into that process's traceback; it is unwrapped here.
    """

    def __init__(self, message: str) -> None:
        for kind in (ImageFileError, DamagedImageError):
            message = message.strip().rpartition(f".{kind.__name__}: ")[2]
        super().__init__(message)


class DamagedImageError(ImageFileError):
    """The content of an image file cannot be read, so reading it again would fail too."""


def read_image(file: Path | IO[bytes], name: object = None) -> Image:
    """An image file as an upright RGB image of 8 bits, on white if it is transparent; the first frame of an animation.

    `name` is the file's name in errors, its path by default. Raises DamagedImageError in one line for content that
    cannot be read, and OSError if the file cannot be opened.
    """
    name = name or file
    with _damage_named(name):
        return upright_rgb(open_image(file, name), what=str(name))


def open_image(file: Path | IO[bytes], name: object = None) -> Image:
    """An image file as Pillow decodes it, with its mode and orientation; errors as in `read_image`."""
    with _damage_named(name or file), _opened(file) as image:
        image.load()
        return image


def image_size(file: Path | IO[bytes], name: object = None) -> tuple[int, int]:
    """Height and width of the upright image in a file, from its header; for a PNG all checksums are compared.

    Errors as in `read_image`.
    """
    name = name or file
    with _damage_named(name), _opened(file) as image:
        _refuse_float(image, str(name))
        # Pillow reports the upright size of a TIFF itself.
        sideways = image.format != "TIFF" and _orientation(image) in SIDEWAYS
        image.verify()
        return (image.width, image.height) if sideways else (image.height, image.width)


@contextmanager
def _opened(file: Path | IO[bytes]) -> Iterator[Image]:
    from PIL.Image import open as opened

    if isinstance(file, Path) and file.exists() and not (file.is_file() or file.is_dir()):
        raise ImageFileError(f"{file} is not a file but a pipe or a device; give an image file")
    # Given a path, Pillow memory-maps an uncompressed TIFF, and confuses the sides if its orientation swaps them.
    with file.open("rb") if isinstance(file, Path) else nullcontext(file) as stream:
        with _FILTERS, warnings.catch_warnings(action="ignore"):  # of broken EXIF, and of sizes up to Pillow's limit
            image = opened(stream, formats=_kinds())
        with image:
            yield image


@cache
def _kinds() -> tuple[str, ...]:
    """The KINDS that the installed Pillow can read; AVIF needs 11.3."""
    from PIL import Image

    Image.init()
    return tuple(kind for kind in KINDS if kind in Image.OPEN)


@contextmanager
def _damage_named(name: object) -> Iterator[None]:
    from PIL import UnidentifiedImageError
    from PIL.Image import DecompressionBombError

    try:
        yield
    except (ImageFileError, MemoryError):
        raise
    except UnidentifiedImageError:
        lacking = [kind for kind in KINDS if kind not in _kinds()]
        more = f"; {', '.join(lacking)} needs a newer Pillow" if lacking else ""
        raise DamagedImageError(
            f"{name} is not an image that can be read; use PNG, JPEG, WebP, GIF or TIFF{more}"
        ) from None
    except DecompressionBombError as error:
        raise DamagedImageError(f"{name} is too large: {_line(error)}") from None
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file system's
        raise DamagedImageError(f"{name} is damaged: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Square(NamedTuple):
    """A square part of an image, in pixels."""

    left: int
    top: int
    side: int


def image_tensor(image: Image, side: int) -> Tensor:
    """A PIL image, upright, in RGB, cropped to the square in its middle, scaled: (3, side, side), float in [0, 1]."""
    upright = upright_rgb(image)
    return square_tensor(upright, middle_square(*upright.size), side)


def upright_rgb(image: Image, behind: str = "white", what: str = "the image") -> Image:
    """A PIL image upright (EXIF orientation applied), in RGB of 8 bits, on the colour `behind` where it is transparent.

    DamagedImageError, which is a ValueError, for pixels without a known range: floating-point numbers, and integers
    of more than 16 bits.
    """
    from PIL.Image import alpha_composite, new

    _refuse_float(image, what)
    upright = _turned(image)
    if upright.mode.startswith("I"):
        upright = _of_16_bits(upright, what)
    if upright.has_transparency_data:
        upright = alpha_composite(new("RGBA", upright.size, behind), upright.convert("RGBA"))
    found = upright.convert("RGB")
    found.info = {}  # without the orientation, by which it would be turned again
    return found


def _refuse_float(image: Image, what: str) -> None:
    if image.mode == "F":
        raise DamagedImageError(f"{what} has floating-point pixels; save it with 8 or 16 bits per channel")


def _turned(image: Image) -> Image:
    from PIL.Image import Transpose

    turns = (
        Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE,
        Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90,
    )  # fmt: skip
    orientation = _orientation(image)
    return image.transpose(turns[orientation - 2]) if 2 <= orientation <= 8 else image


def _orientation(image: Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where it is missing or cannot be read."""
    from PIL.Image import Image as Plain

    try:
        with _FILTERS, warnings.catch_warnings(action="ignore"):
            # The method of PNG images would decode the whole file first, since EXIF may be at its end.
            return int(Plain.getexif(image).get(ORIENTATION, 1))
    except Exception:  # anything, of broken EXIF
        return 1


def _of_16_bits(image: Image, what: str) -> Image:
    """Grey levels of 16 bits scaled to 8, which Pillow would clip; the transparent level becomes alpha."""
    from PIL.Image import fromarray, merge

    levels = np.asarray(image).astype(np.int64)
    if levels.size and not 0 <= levels.min() <= levels.max() < 2**16:
        raise DamagedImageError(
            f"{what} has pixels from {levels.min()} to {levels.max()}; save it with 8 or 16 bits per channel"
        )
    grey = fromarray(((levels * 255 + 2**15 - 1) // (2**16 - 1)).astype(np.uint8))
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    return merge("LA", (grey, fromarray(np.where(levels == clear, 0, 255).astype(np.uint8))))


def given_image(image: Given) -> Image:
    """The image argument of `edit`, `vary` and `reconstruct`, upright and in RGB.

    A PIL image of any mode, the path of a file, an array (h, w, 3) of uint8, or a tensor (3, h, w), float in [0, 1].
    ValueError in one line for anything else.
    """
    from PIL.Image import Image as PILImage
    from PIL.Image import fromarray

    if isinstance(image, PILImage):
        return upright_rgb(image)
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if isinstance(image, Tensor):
        require_unit_tensor(image)
        return as_output(image.detach().cpu()[None] * 2 - 1, "pil")[0]
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"the image is {'None' if image is None else f'a {type(image).__name__}'}; it must be a PIL image, a path, "
            "an array (h, w, 3) of uint8, or a tensor (3, h, w), float from 0 to 1"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"the image is an array of {image.dtype} {image.shape}; an array must be uint8 (h, w, 3), from 0 to 255"
        )
    return fromarray(np.ascontiguousarray(image))


def require_unit_tensor(image: Tensor) -> None:
    """ValueError in one line for a tensor that is not an image (3, h, w), float in [0, 1]."""
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"the image has shape {tuple(image.shape)}; a tensor must be (3, h, w), float from 0 to 1")
    if not image.is_floating_point():
        raise ValueError(f"the image is a tensor of {image.dtype}; it must be float from 0 to 1: divide bytes by 255")
    if not bool(((image >= 0) & (image <= 1)).all()):
        low, high = image.min().item(), image.max().item()
        raise ValueError(f"the image holds values from {low:g} to {high:g}; a tensor must hold values from 0 to 1")


def given_square(image: Given, side: int, least: int = 1) -> Tensor:
    """A given image (as in `given_image`), cropped to the square in its middle, scaled: (3, side, side), in [0, 1].

    A tensor of that size is returned unchanged. ValueError for an image whose height or width is below `least` pixels.
    """
    if isinstance(image, Tensor) and image.shape == (3, side, side):
        require_unit_tensor(image)
        return image
    upright = given_image(image)
    if min(upright.size) < least:
        raise ValueError(
            f"the image is {upright.width}x{upright.height}; it must be at least {least}x{least}, the patch of one "
            "token: give a larger image"
        )
    return image_tensor(upright, side)


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
    """Images in [-1, 1], on any device, in an output type on the CPU: "pt", "np" or "pil"."""
    unit = (images_B3hw + 1) / 2
    if output_type == "pt":
        return unit.cpu()
    last = unit.permute(0, 2, 3, 1).contiguous()
    if output_type == "np":
        return last.cpu().numpy()
    from PIL.Image import fromarray

    # Bytes before they leave the device: a quarter of what the numbers would be.
    return [fromarray(image) for image in to_uint8(last).cpu().numpy()]
