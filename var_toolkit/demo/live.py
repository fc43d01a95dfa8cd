"""Work in a thread of its own, told about while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


class AbandonedError(Exception):
    """Nobody listens any more: ends the work from within."""


def live(work: Callable[[Callable[[T], None]], T]) -> Iterator[T]:
    """All that `work(tell)` tells while it runs, and at last what it returns; what it raises is raised here.

    Closing the iterator ends the work the next time it tells something.
    """
    told: SimpleQueue[Any] = SimpleQueue()
    left = Event()

    def tell(item: T) -> None:
        if left.is_set():
            raise AbandonedError
        told.put(item)

    def run() -> None:
        try:
            told.put(work(tell))
        except BaseException as error:  # whatever it is, it belongs to the one who listens
            told.put(error)
        told.put(_END)

    Thread(target=run, daemon=True).start()
    try:
        while (item := told.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
