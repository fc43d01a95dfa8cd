"""Images that a call shows to a network besides the class or the text: the source of an edit, and control images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from var_toolkit.conditions.condition import Request
from var_toolkit.conditions.images import CONTROL, SOURCE, image_of
from var_toolkit.core.plan import Plan
from var_toolkit.core.schedule import Schedule
from var_toolkit.images import Given, Square, given_image, pixels
from var_toolkit.registry import prompt_models

if TYPE_CHECKING:
    from PIL.Image import Image

    from var_toolkit.pipeline import Pipeline


@dataclass(frozen=True)
class Shown:
    """The images of a call. A source is made for the schedule, (1, 3, h, w) in [-1, 1]."""

    source: Callable[[Schedule], Tensor] | None = None
    control: Given = None

    def request(self, pipe: Pipeline, plan: Plan) -> Request | None:
        """What the network makes of the image, once for all batches; None without an image.

        ValueError of one line if the network does not read such an image, or needs one.
        """
        network, schedule = pipe.backbone, plan.schedule
        require_image(network, plan, source=self.source is not None, control=self.control is not None)
        if self.source is not None:
            images = self.source(schedule)
        elif self.control is not None:
            images = control_tensor(self.control, schedule.image_size(pipe.tokenizer.downsample))[None] * 2 - 1
        else:
            return None
        found: Request = network.image_request(images.to(pipe.device), pipe.tokenizer, schedule)
        return found if plan.control_strength == 1 else found.weighed(plan.control_strength)


def require_image(network: Any, plan: Plan | None = None, *, source: bool, control: bool) -> None:
    """ValueError of one line if a network, or a plan, does not read the images of a call, or needs one."""
    reads, name = image_of(network), type(network).__name__
    kind = None if reads is None else reads.kind
    if source and kind != SOURCE:
        raise ValueError(
            f"{name} does not edit by instructions; give a mask or expand, or a model that does: "
            f"{', '.join(prompt_models(edits=True))}"
        )
    if control and kind != CONTROL:
        raise ValueError(
            f"{name} reads no control image; give a model that does, such as car-canny-d16 or controlar-canny"
        )
    if plan is not None and plan.control_strength != 1 and not control:
        raise ValueError("control_strength is the weight of a control image, and there is none; give one")
    if kind == SOURCE and not source:
        raise ValueError(f"{name} edits an image by an instruction; use `edit` with an image and an instruction")


def edits(network: Any) -> bool:
    """Whether a network edits an image by an instruction."""
    reads = image_of(network)
    return reads is not None and reads.kind == SOURCE


def control_tensor(image: Given, size: tuple[int, int]) -> Tensor:
    """A control image, cropped in its middle to the aspect ratio of `size` (height, width) and scaled to it.

    (3, height, width), float in [0, 1]. ValueError for an image that `given_image` refuses.
    """
    from PIL.Image import Resampling

    upright, (height, width) = given_image(image), size
    left, top, right, bottom = _middle(upright.size, width / height)
    scaled = upright.resize((width, height), Resampling.BICUBIC, box=(left, top, right, bottom))
    return pixels(scaled) / 255


def control_square(control: Given, image: Image, square: Square, side: int) -> Image:
    """The part of a control image that steers what is drawn into a square of an image, `side` by `side` pixels.

    The control image may be of another size than the image but has its aspect ratio. ValueError of one line if not.
    """
    from PIL.Image import Resampling

    upright = given_image(control)
    across, down = upright.width / image.width, upright.height / image.height
    if abs(across * image.height - upright.height) > 1 and abs(down * image.width - upright.width) > 1:
        raise ValueError(
            f"the control image is {upright.width} x {upright.height} pixels, the image that it steers {image.width} x "
            f"{image.height}; give one of the same aspect ratio: where expand adds pixels, that of the larger image"
        )
    left, top, length = square
    box = (left * across, top * down, (left + length) * across, (top + length) * down)
    return upright.resize((side, side), Resampling.BICUBIC, box=box)


def _middle(size: tuple[int, int], ratio: float) -> tuple[float, float, float, float]:
    """The largest box of an aspect ratio (width / height) in the middle of an image: left, top, right, bottom."""
    width, height = min(size[0], size[1] * ratio), min(size[1], size[0] / ratio)
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height
