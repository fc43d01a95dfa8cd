"""Work that is told about while it goes on."""

import asyncio
import subprocess
import sys
from contextlib import aclosing
from threading import Event

import pytest

from var_toolkit.abandoning import AbandonedError
from var_toolkit.demo.live import Worker

ENDS_WHILE_IT_DRAWS = """
import asyncio
from functools import partial
from var_toolkit.demo.studio import Studio, Wish

studio = Studio(["stilllife-var-small"], device="cpu")
wish = Wish("stilllife-var-small", "Plain, all layers", 207, 3, 1.5)

async def begin():
    global told
    told = studio.worker.live(partial(studio.draw, wish))
    await anext(told)

asyncio.run(begin())
"""


@pytest.fixture
def worker():
    found = Worker()
    yield found
    assert found.end(10)


async def everything(worker, work) -> list:
    return [item async for item in worker.live(work)]


def test_what_is_told_comes_in_order_and_the_result_last(worker):
    def work(tell):
        for number in [0, None, 1, 2]:
            tell(number)
        return 3

    assert asyncio.run(everything(worker, work)) == [0, 1, 2, 3]


def test_it_is_told_before_the_work_is_over(worker):
    go_on = Event()

    def work(tell):
        tell("first")
        assert go_on.wait(10)
        return "last"

    async def listen():
        async with aclosing(worker.live(work)) as heard:
            assert await anext(heard) == "first"
            go_on.set()
            assert await anext(heard) == "last"

    asyncio.run(listen())


def test_an_error_of_the_work_is_raised_to_who_listens(worker):
    def work(tell):
        raise ValueError("seed is odd")

    with pytest.raises(ValueError, match="seed is odd"):
        asyncio.run(everything(worker, work))


def left_work(ended: Event, go_on: Event):
    """Work that ends `ended` once it is told that nobody listens, which it asks after `go_on`."""

    def work(tell):
        tell("first")
        assert go_on.wait(10)
        try:
            tell(None)
        except AbandonedError:
            ended.set()
            raise
        return "last"

    return work


@pytest.mark.parametrize("way", ["closed", "cancelled"])
def test_work_that_nobody_listens_to_ends(worker, way):
    ended, go_on = Event(), Event()

    async def leave():
        async with aclosing(worker.live(left_work(ended, go_on))) as heard:
            assert await anext(heard) == "first"
            if way == "cancelled":  # while it waits for the next
                waiting = asyncio.ensure_future(anext(heard))
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting

    asyncio.run(leave())
    go_on.set()
    assert ended.wait(10)


def test_who_waits_is_told_for_how_many(worker):
    go_on = Event()

    async def third():
        first, second = (asyncio.ensure_future(everything(worker, lambda tell: go_on.wait(10))) for _ in range(2))
        await asyncio.sleep(0)
        heard = []
        async with aclosing(worker.live(lambda tell: "mine")) as told:
            async for item in told:
                heard.append(item)
                go_on.set()
        await asyncio.gather(first, second)
        return heard

    heard = asyncio.run(third())
    assert (heard[0], heard[-1]) == ("waiting for 2 others", "mine")


def test_the_end_waits_for_the_work_and_says_if_it_took_too_long():
    worker, ended, go_on = Worker(), Event(), Event()

    async def listen():
        async for _ in worker.live(left_work(ended, go_on)):
            assert not worker.end(0)
            go_on.set()
        return worker.end(10)

    assert asyncio.run(listen())
    assert ended.is_set()


def test_work_that_waits_for_other_work_is_not_begun_after_the_end():
    worker, go_on = Worker(), Event()
    begun = []

    async def listen():
        first = worker.live(left_work(Event(), go_on))
        await anext(first)
        waiting = asyncio.ensure_future(anext(worker.live(begun.append)))
        await asyncio.sleep(0)
        worker.end(0)
        go_on.set()
        waiting.cancel()

    asyncio.run(listen())
    assert worker.end(10)
    assert begun == []


def test_an_interpreter_that_ends_while_an_image_is_drawn_does_not_abort(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # with one thread nothing would be left to abort
    done = subprocess.run([sys.executable, "-c", ENDS_WHILE_IT_DRAWS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
