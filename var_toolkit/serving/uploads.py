"""The image and the mask of an edit, read from what a client sends; both are bounded before they are decoded."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from var_toolkit.editing import as_image, prepare
from var_toolkit.images import ImageFileError, image_size, open_image, upright_rgb
from var_toolkit.serving.errors import ApiError, bad_input
from var_toolkit.serving.limits import MOST_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Edited:
    """The image of an edit."""

    image: Image  # RGB
    mask: Image | None  # light where the image is redrawn; None for a model that edits by an instruction
    keep_pixels: bool

    def require_fit(self, side: int) -> None:
        """ApiError if a model that draws images of a side cannot edit this one."""
        name = "image"
        try:
            as_image(self.image, side)
            name = "mask"
            if self.mask is not None:
                prepare(self.image, self.mask, None, side=side, whole=self.keep_pixels)
        except ValueError as error:
            raise bad_input(error, name) from None


def edited_of(image: bytes, mask: bytes | None, *, keep_pixels: bool) -> Edited:
    """An image and its mask, as files. ApiError for files that cannot be used.

    As clients of OpenAI send it, what is transparent in a mask is redrawn, and without a mask what is transparent in
    the image. Of a mask that is nowhere transparent, what is light is redrawn.
    """
    opened = _opened(image, "image")
    if mask is None:
        return Edited(upright_rgb(opened), _clear(opened), keep_pixels)
    given = _opened(mask, "mask")
    return Edited(upright_rgb(opened), _clear(given) or given, keep_pixels)


def _opened(content: bytes, name: str) -> Image:
    try:
        height, width = image_size(BytesIO(content), name)
        if height * width > MOST_PIXELS:
            raise ApiError(413, f"{name} has {width}x{height} pixels; at most {MOST_PIXELS} are read", param=name)
        found = open_image(BytesIO(content), name)
        upright_rgb(found, what=name)  # which refuses what has no range
        return found
    except ImageFileError as error:
        raise bad_input(error, name) from None


def _clear(given: Image) -> Image | None:
    """White where an image is transparent and black elsewhere, upright; None if it is nowhere transparent."""
    if not given.has_transparency_data:
        return None
    from PIL.Image import merge
    from PIL.ImageOps import invert

    clear = invert(given.convert("RGBA").getchannel("A"))
    if clear.getbbox() is None:
        return None
    shown = merge("RGB", (clear,) * 3)
    shown.info = {name: given.info[name] for name in ("exif",) if name in given.info}  # by which it is turned
    return upright_rgb(shown)
