"""A thread that draws, and reports while it draws."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from threading import Event
from typing import Any, TypeVar

from var_toolkit.abandoning import AbandonedError

T = TypeVar("T")
GLANCE = 0.05  # seconds between two looks at the line, for those who wait in it
_END = object()


class Worker:
    """One thread, which does one piece of work after another.

    The interpreter must not end while it works: torch's own threads abort the process (SIGABRT) if it does. So the
    thread is no daemon, and a server calls `end`, which does not wait for the whole of the work.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="drawing")
        self._ending = Event()
        self._line: list[Future[None]] = []  # what is done now, and what waits for it, in order

    async def live(self, work: Callable[[Callable[[T | None], None]], T]) -> AsyncGenerator[T | str]:
        """All that `work(tell)` tells while it runs, and at last what it returns; what it raises is raised here.

        Before it runs, how much other work it waits for.

        Closing the iterator, or cancelling the task that waits for it, ends the work the next time it tells something,
        be it None, which nobody hears.
        """
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Any] = asyncio.Queue()
        left = Event()

        def put(item: Any) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody is left to listen
                loop.call_soon_threadsafe(told.put_nowait, item)

        def tell(item: T | None) -> None:
            if left.is_set() or self._ending.is_set():
                raise AbandonedError
            if item is not None:
                put(item)

        def run() -> None:
            try:
                put(work(tell))
            except BaseException as error:  # whatever it is, it belongs to the one who listens
                put(error)
            put(_END)

        future = self._pool.submit(run)
        self._line.append(future)
        future.add_done_callback(self._line.remove)
        try:
            async for others in self._waiting(future):
                yield f"waiting for {others} other{'s' if others > 1 else ''}"
            while (item := await told.get()) is not _END:
                if isinstance(item, AbandonedError):
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            left.set()
            future.cancel()  # if it has not begun

    async def _waiting(self, future: Future[None]) -> AsyncGenerator[int]:
        """How much work is before this one in the line, each time that it changes, until there is none."""
        others = before = 0
        while not (future.running() or future.done()):
            with suppress(ValueError):  # it is over
                others = self._line.index(future)
            if others and others != before:
                yield others
            before = others
            await asyncio.sleep(GLANCE)

    def end(self, patience: float) -> bool:
        """Let the work end the next time it tells something; whether it has ended within so many seconds."""
        self._ending.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        return not wait(list(self._line), patience).not_done
