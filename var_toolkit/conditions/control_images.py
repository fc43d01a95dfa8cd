"""Control images made of a photo: edges by OpenCV, depth by a network of transformers.

OpenCV, because the published adapters learned from its edges: those of other libraries are thinner or thicker.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from var_toolkit.conditions.text_encoders import EXTRA as TEXT_EXTRA
from var_toolkit.conditions.text_encoders import read_pretrained
from var_toolkit.images import Given, given_image

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = ("canny", "depth")
EXTRA = 'pip install "var-toolkit[control]"'
THRESHOLDS = (100, 200)  # of Canny's gradients, as in the training of CAR and ControlAR
SIZE = 512


def control_image(image: Given, kind: str, *, size: int = SIZE, estimator: str | None = None) -> Image:
    """A control image of a photo, of its aspect ratio; light is an edge, or near.

    `kind` is "canny" for edges of one pixel, or "depth", for which `estimator` names a network that transformers reads
    for depth estimation: a directory or a hub id. A photo whose shorter side exceeds `size` pixels is reduced to that
    first, since adapters learned from images of about the size that they draw.

    `image` is what `images.given_image` accepts. The result is a PIL image in RGB. ValueError in one line for a bad
    image or setting, or a missing library.
    """
    require_kind(kind, size, estimator)
    photo = _reduced(given_image(image), size)
    if kind == "depth":
        return _depth(photo, str(estimator))
    return _edges(photo)


def require_kind(kind: str, size: int = SIZE, estimator: str | None = None) -> None:
    """ValueError of one line for settings of `control_image` that do not fit, or a library that is missing."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be {' or '.join(KINDS)}")
    if size < 1:
        raise ValueError(f"size is {size}; it must be a number of pixels from 1")
    if (kind == "depth") != (estimator is not None):
        raise ValueError(
            "kind depth needs an estimator, and canny has none; name a network for depth estimation, such as "
            "depth-anything/Depth-Anything-V2-Small-hf, for depth alone"
        )
    if kind == "depth" and find_spec("transformers") is None:
        raise ValueError(f"kind depth needs transformers: {TEXT_EXTRA}")
    if kind == "canny" and find_spec("cv2") is None:
        raise ValueError(f"kind canny needs OpenCV: {EXTRA}")


def _reduced(photo: Image, size: int) -> Image:
    from PIL.Image import Resampling

    factor = size / min(photo.size)
    if factor >= 1:
        return photo
    return photo.resize((round(photo.width * factor), round(photo.height * factor)), Resampling.LANCZOS)


def _edges(photo: Image) -> Image:
    import cv2
    from PIL.Image import fromarray

    return fromarray(cv2.Canny(np.asarray(photo), *THRESHOLDS)).convert("RGB")


def _depth(photo: Image, estimator: str) -> Image:
    import transformers

    what = "depth estimator"
    network = read_pretrained(transformers.AutoModelForDepthEstimation.from_pretrained, estimator, what)
    reader = read_pretrained(transformers.AutoImageProcessor.from_pretrained, estimator, what)
    estimate = transformers.pipeline("depth-estimation", model=network, image_processor=reader)
    found: Image = estimate(photo)["depth"].convert("RGB")
    return found
