"""Images that a request shows to a network: the source of an edit, or a control image such as edges.

A network that reads one has `image`, the `ImageInput` that it reads, and `image_request`, called once per request,
which computes all that depends on the image alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from var_toolkit.conditions.condition import Asked, Condition, Request

SOURCE, CONTROL = "source", "control"


@dataclass(frozen=True)
class ImageInput:
    """The image that a network reads, of the size that it draws."""

    kind: str  # SOURCE, which is edited, or CONTROL, which steers
    weighed: bool = False  # whether a control image may count less or more, by the setting `control_strength`


@dataclass(frozen=True, eq=False)
class WithImage:
    """What a batch of images is to show (`core.engine.decode`), with an image that a network reads.

    `image` are the parts of a condition that were made of the image, and their null twin: one row for the whole batch,
    or one for each image.
    """

    asked: Asked
    image: Request

    def __len__(self) -> int:
        return len(self.asked)

    def rows(self, network: Any, copies: int) -> Condition:
        """The condition of the images (1), or of the images and their null twins (2), for a network."""
        found = self.asked.rows(network, copies)
        if image_of(network) is None:
            return found
        count = len(self)
        halves = (self.image.condition, self.image.null)[:copies]
        parts = [found.of_rows(slice(at * count, (at + 1) * count)).joined(half) for at, half in enumerate(halves)]
        return parts[0] if copies == 1 else parts[0].with_null(parts[1])


def image_of(network: Any) -> ImageInput | None:
    """The image that a network reads; None for one that reads none."""
    return getattr(network, "image", None)
