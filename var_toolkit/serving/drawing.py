"""The one thread that draws: batch after batch from the line, until that is closed and empty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event, Thread
from time import perf_counter
from typing import TYPE_CHECKING, Any

from var_toolkit.abandoning import AbandonedError, checked_by_layer
from var_toolkit.images import as_output
from var_toolkit.serving.jobs import Piece
from var_toolkit.serving.line import Line
from var_toolkit.serving.metrics import Metrics

if TYPE_CHECKING:
    from var_toolkit.core.engine import ScaleEvent
    from var_toolkit.output import PipelineOutput


class Drawer(Thread):
    """Draws what waits in a line.

    The interpreter must not end while it works: torch's own threads abort the process (SIGABRT) if it does. So it is no
    daemon, and a server calls `end`.
    """

    def __init__(self, line: Line[Piece], metrics: Metrics) -> None:
        super().__init__(name="drawing")
        self.line, self.metrics = line, metrics
        self._ending = Event()

    def run(self) -> None:
        while batch := self.line.next():
            self._draw([piece for piece in batch if not piece.job.left])

    def end(self, patience: float) -> bool:
        """Give up what is drawn and what waits; whether the thread has ended within so many seconds."""
        self._ending.set()
        self.line.close()
        self.join(patience)
        return not self.is_alive()

    def _draw(self, batch: Sequence[Piece]) -> None:
        """Draw a batch, and tell the images; one that fails is drawn again image by image, to find who is to blame."""
        if not batch:
            return
        began = perf_counter()
        try:
            with checked_by_layer(batch[0].job.order.model.pipe.networks, lambda: self._check(batch)):
                output = draw(batch, self._watch(batch))
        except AbandonedError:
            return
        except Exception as error:  # whatever it is, it belongs to the one who listens
            if len(batch) == 1:
                batch[0].job.fail(error)
                return
            for piece in batch:
                self._draw([] if piece.job.left else [piece])
            return
        self.metrics.drawn(batch, began, perf_counter())
        for piece, image in zip(batch, output.images, strict=True):
            piece.job.finish(piece.number, image)

    def _check(self, batch: Sequence[Piece]) -> None:
        """End the drawing of a batch of which nobody is left."""
        if self._ending.is_set() or all(piece.job.left for piece in batch):
            raise AbandonedError

    def _watch(self, batch: Sequence[Piece]) -> Callable[[ScaleEvent], None]:
        def watch(event: ScaleEvent) -> None:
            self._check(batch)
            rows = [row for row, piece in enumerate(batch) if piece.job.wants_preview(event.scale)]
            if not rows:
                return
            for row, image in zip(rows, as_output(event.of(rows).preview().cpu(), "pil"), strict=True):
                batch[row].job.show(image)

        return watch


def draw(batch: Sequence[Piece], watch: Callable[[ScaleEvent], None]) -> PipelineOutput:
    """One image for each piece of a batch, by one call of a pipeline: each has its own subject and its own seed."""
    order = batch[0].job.order
    orders = [piece.job.order for piece in batch]
    subjects: list[Any] = [one.subject for one in orders]
    how: dict[str, Any] = {
        "seeds": [piece.seed for piece in batch],
        "plan": order.plan,
        "batch_size": len(batch),
        "callback_on_scale_end": watch,
    }
    if order.negative_prompt is not None:
        how["negative_prompt"] = [one.negative_prompt for one in orders]
    pipe, edited = order.model.pipe, order.edited
    if edited is not None and edited.mask is None:
        return next(pipe.stream_edit(edited.image, instruction=subjects, **how))
    labels = None if order.model.reads_text else subjects
    how |= {"prompt": subjects} if order.model.reads_text else {}
    if edited is None:
        return next(pipe.stream(labels, **how))
    return next(pipe.stream_edit(edited.image, edited.mask, labels, keep_pixels=edited.keep_pixels, **how))
