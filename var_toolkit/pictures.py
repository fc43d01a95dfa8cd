"""Pictures as files hold them, and as tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


def picture_tensor(image: Image, side: int) -> Tensor:
    """A PIL picture, upright, in RGB, scaled and centre-cropped to (3, side, side), float in [0, 1]."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits, which Pillow would clip, not scale
        upright = upright.point(lambda level: level / 257).convert("L")
    fitted = ImageOps.fit(upright.convert("RGB"), (side, side), method=Resampling.LANCZOS)
    return torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1) / 255


def to_uint8(pictures: Tensor) -> Tensor:
    """Pictures of any shape, float in [0, 1], as the bytes that a file holds: uint8, rounded to the nearest."""
    return (pictures.float().clamp(0, 1) * 255).round().to(torch.uint8)


def as_output(pictures_B3hw: Tensor, output_type: str) -> Any:
    """Pictures in [-1, 1] as what the caller asked for."""
    unit = (pictures_B3hw + 1) / 2
    if output_type == "pt":
        return unit
    last = unit.permute(0, 2, 3, 1).contiguous()
    if output_type == "np":
        return last.numpy()
    from PIL.Image import fromarray

    return [fromarray(picture) for picture in to_uint8(last).numpy()]
