"""Counts and times of a server, in the text form of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from var_toolkit.serving.jobs import Job, Piece

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """What is counted, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory and processor time, on Linux
        self._requests = Counter("vargen_requests", "answers", ["route", "status"], registry=self.registry)
        self._images = Counter("vargen_images", "images drawn", ["model"], registry=self.registry)
        self._left = Counter("vargen_abandoned", "requests whose client left", ["model"], registry=self.registry)
        self._refused = Counter("vargen_refused", "requests that found the queue full", registry=self.registry)
        self._batches = self._histogram("vargen_batch_images", "images drawn together", BATCHES)
        self._waiting = self._histogram("vargen_waiting_seconds", "from the request to the drawing", SECONDS)
        self._drawing = self._histogram("vargen_drawing_seconds", "drawing of a batch", SECONDS)
        self._queue = Gauge("vargen_queue_images", "images that wait", registry=self.registry)
        self.seconds_an_image = 0.0  # lately

    def _histogram(self, name: str, help: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, help, ["model"], buckets=buckets, registry=self.registry)

    def watch_queue(self, length: Callable[[], float]) -> None:
        """Read the length of the queue whenever it is asked for."""
        self._queue.set_function(length)

    def answered(self, route: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()

    def refused(self) -> None:
        """A request found the queue full."""
        self._refused.inc()

    def abandoned(self, job: Job) -> None:
        """A client left before its images were done."""
        self._left.labels(job.order.model.name).inc()

    def drawn(self, batch: Sequence[Piece], began: float, ended: float) -> None:
        """A batch was drawn; times of `time.perf_counter`."""
        model = batch[0].job.order.model.name
        self._images.labels(model).inc(len(batch))
        self._batches.labels(model).observe(len(batch))
        self._drawing.labels(model).observe(ended - began)
        for piece in batch:
            self._waiting.labels(model).observe(began - piece.job.came)
        lately = (ended - began) / len(batch)
        self.seconds_an_image += (lately - self.seconds_an_image) * (0.2 if self.seconds_an_image else 1)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
