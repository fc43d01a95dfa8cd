"""What the routes share: the models, the line, the drawing thread, and the counts."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from var_toolkit.serving.drawing import Drawer
from var_toolkit.serving.errors import ApiError
from var_toolkit.serving.jobs import Job, Piece
from var_toolkit.serving.limits import MOST_IMAGES
from var_toolkit.serving.line import ClosedError, FullError, Line
from var_toolkit.serving.metrics import Metrics
from var_toolkit.serving.models import Served
from var_toolkit.serving.orders import Order

LONGEST_RETRY = 600  # seconds


class Service:
    """Draws the orders of any number of clients, one batch at a time.

    `queue` images may wait, besides those that are drawn; of them up to `batch` are drawn together.
    """

    def __init__(self, models: Mapping[str, Served], *, queue: int, batch: int) -> None:
        self.models = models
        self.metrics = Metrics()
        self.line: Line[Piece] = Line(queue, batch)
        self.drawer = Drawer(self.line, self.metrics)
        self.metrics.watch_queue(lambda: len(self.line))

    def start(self) -> None:
        """Begin to draw."""
        self.drawer.start()

    @property
    def alive(self) -> bool:
        """Whether what is accepted will be drawn."""
        return self.drawer.is_alive()

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self.alive and not self.line.closed

    def submit(self, order: Order) -> Job:
        """Put the images of an order into the line. ApiError if that is full, or closed."""
        if len(order.seeds) > self.line.room:
            raise ApiError(400, f"n is {len(order.seeds)}; the queue here holds {self.line.room} images", param="n")
        job = Job(order)
        try:
            self.line.join(job.pieces)
        except FullError:
            self.metrics.refused()
            told = f"{len(self.line)} images wait, and the queue holds {self.line.room}; try again later"
            raise ApiError(429, told, code="queue_full", retry_after=self._wait()) from None
        except ClosedError:
            raise ApiError(503, "the server is stopping; use another one", code="stopping", retry_after=1) from None
        return job

    def leave(self, job: Job) -> None:
        """The client of a job has left, or has all that it waited for."""
        job.left = True
        self.line.leave(job.pieces)

    def stop(self) -> None:
        """Accept nothing more; what was accepted is drawn."""
        self.line.close()

    def end(self, patience: float) -> bool:
        """Give up what is not drawn yet; whether the drawing thread has ended within so many seconds."""
        return self.drawer.end(patience)

    def _wait(self) -> int:
        """Seconds after which there should be room for a request."""
        soon = self.metrics.seconds_an_image * min(MOST_IMAGES, self.line.room)
        return max(1, min(LONGEST_RETRY, ceil(soon)))
