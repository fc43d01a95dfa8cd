"""A request under way: told by the drawing thread, heard on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from var_toolkit.serving.orders import Order

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Preview:
    """An image after one of its scales."""

    number: int  # of the preview, from 0
    image: Image


@dataclass(frozen=True)
class Finished:
    """An image that is done."""

    number: int  # among those of its request, from 0
    image: Image


class Job:
    """An order whose images wait, or are drawn, until all of them are finished or its client has left."""

    def __init__(self, order: Order) -> None:
        self.order, self.came = order, perf_counter()
        self.pieces = [Piece(self, number) for number in range(len(order.seeds))]
        self.left = False
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[Preview | Finished | BaseException] = asyncio.Queue()
        self._shown = 0  # previews

    def wants_preview(self, scale: int) -> bool:
        """Whether the image is to be shown after a scale, and has not been: a batch that fails is drawn again."""
        previews = self.order.previews
        return not self.left and scale in previews and previews.index(scale) == self._shown

    def show(self, image: Image) -> None:
        """Tell the next preview."""
        self._tell(Preview(self._shown, image))
        self._shown += 1

    def finish(self, number: int, image: Image) -> None:
        """Tell an image that is done."""
        self._tell(Finished(number, image))

    def fail(self, error: BaseException) -> None:
        """Tell that an image cannot be drawn, and give up the others."""
        self.left = True
        self._tell(error)

    def _tell(self, item: Preview | Finished | BaseException) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody is left to listen
            self._loop.call_soon_threadsafe(self._told.put_nowait, item)

    async def events(self) -> AsyncIterator[Preview | Finished]:
        """Everything that is told until the last image is done; what `fail` was given is raised."""
        missing = len(self.pieces)
        while missing:
            item = await self._told.get()
            if isinstance(item, BaseException):
                raise item
            missing -= isinstance(item, Finished)
            yield item

    async def images(self) -> list[Image]:
        """All images, in the order of their seeds, once they are done."""
        found = {one.number: one.image async for one in self.events() if isinstance(one, Finished)}
        return [found[number] for number in range(len(self.pieces))]


@dataclass(frozen=True, eq=False)
class Piece:
    """One image of a job."""

    job: Job
    number: int

    @property
    def seed(self) -> int:
        """The seed of the image."""
        return self.job.order.seeds[self.number]

    @property
    def batch_key(self) -> Hashable:
        """Equal for images that can be drawn together."""
        return self.job.order.batch_key
