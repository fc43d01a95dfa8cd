"""The line of images that wait to be drawn: bounded, and left in batches of images that can be drawn together."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from threading import Condition
from time import monotonic
from typing import Generic, Protocol, TypeVar

PAUSE = 0.01  # seconds without a newcomer, after which a batch that is not full is drawn
LONGEST = 0.1  # seconds that it waits for those whose requests are being read


class Waiting(Protocol):
    """What waits."""

    @property
    def batch_key(self) -> Hashable:
        """Equal for what can be drawn together."""


T = TypeVar("T", bound=Waiting)


class FullError(Exception):
    """There is no room in the line."""


class ClosedError(Exception):
    """The line takes nothing any more."""


class Line(Generic[T]):
    """First come, first served, except that what can be drawn together with the first goes with it."""

    def __init__(self, room: int, batch: int) -> None:
        self.room, self.batch = room, batch
        self._waiting: deque[T] = deque()
        self._coming = 0
        self._closed = False
        self._changed = Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._closed

    def join(self, some: Sequence[T]) -> None:
        """Take all of them or none: FullError if there is no room for them, ClosedError once it is closed."""
        with self._changed:
            if self._closed:
                raise ClosedError
            if len(self._waiting) + len(some) > self.room:
                raise FullError
            self._waiting += some
            self._changed.notify()

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Somebody is about to join, so a batch that is not full waits a little longer."""
        with self._changed:
            self._coming += 1
        try:
            yield
        finally:
            with self._changed:
                self._coming -= 1
                self._changed.notify()

    def leave(self, some: Sequence[T]) -> None:
        """Give up the places of those that still wait."""
        with self._changed:
            gone = set(map(id, some))
            self._waiting = deque(one for one in self._waiting if id(one) not in gone)

    def close(self) -> None:
        """Take nothing any more; what waits is drawn."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def next(self) -> list[T]:
        """The next batch, once there is one; empty when the line is closed and nobody waits."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._await_newcomers()
                chosen = list(islice(self._alike(), self.batch))
                gone = set(map(id, chosen))
                self._waiting = deque(one for one in self._waiting if id(one) not in gone)
                if chosen or self._closed:
                    return chosen

    def _await_newcomers(self) -> None:
        """Wait as long as newcomers join the batch, so that those that come together are drawn together."""
        before, end = 0, monotonic() + LONGEST
        while not self._closed and monotonic() < end:
            count = sum(1 for _ in self._alike())
            if count >= self.batch or not (self._coming or count > before):
                return
            before = count
            self._changed.wait(PAUSE)

    def _alike(self) -> Iterator[T]:
        """The first in the line, and all that can be drawn with it."""
        waiting = iter(self._waiting)
        first = next(waiting, None)
        if first is None:
            return
        yield first
        key = first.batch_key
        yield from (one for one in waiting if one.batch_key == key)
